"""A drafter whose lookups are compiled against one that works by torch's operations: both see the same steps."""

from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from shard import states as states_module
from shard.device_step import DeviceStep
from shard.distributed import TPGroup
from shard.speculation import DraftPrice, DraftTree, ngram
from shard.speculation import calibration as calibration_module
from shard.speculation import drafter as drafter_module
from shard.speculation import prices as prices_module
from shard.speculation.drafter import Drafter, SpeculationSizes
from shard.speculation.ngram import NgramLookup
from shard.speculation.prices import HostPrices
from shard.speculation.verify import ancestors
from shard.states import SequenceStates

SLOTS, LENGTH, DEPTH, TREE_SIZE, MAX_MATCH = 5, 24, 3, 4, 4


class Side:
    """One rank's drafter and states."""

    def __init__(self, seed: int, min_match: int) -> None:
        cpu = torch.device("cpu")
        self.states = SequenceStates(
            num_slots=SLOTS, max_total_tokens=LENGTH, tree_size=TREE_SIZE, block_size=16, device=cpu
        )
        generator = torch.Generator().manual_seed(seed)
        # Few token ids, so that texts repeat themselves.
        self.states.token_ids.random_(0, 3, generator=generator)
        self.states.num_tokens.random_(1, LENGTH - 3, generator=generator)
        self.states.max_num_tokens.copy_(self.states.num_tokens + torch.arange(SLOTS + 1) * 2 % 7)
        self.states.finished[:] = torch.rand(SLOTS + 1, generator=generator) < 0.2
        sizes = SpeculationSizes(num_speculative_tokens=DEPTH, tree_size=TREE_SIZE, num_heads=0, tree_width=1)
        lookup = NgramLookup(num_speculative_tokens=DEPTH, min_match=min_match, max_match=MAX_MATCH)
        self.drafter = Drafter(sizes, lookup=lookup, head_factors=None, num_slots=SLOTS, device=cpu)
        nothing: Any = None
        self._step = DeviceStep(
            model=nothing,
            vocab_size=0,
            cache=nothing,
            states=self.states,
            group=TPGroup(),
            drafter=self.drafter,
        )

    def draft(self, prices: list[DraftPrice], **rows: Tensor) -> DraftTree:
        layout: Any = SimpleNamespace(rows=SimpleNamespace(**rows))
        return self._step._draft(self.drafter, layout, HostPrices(prices), None)

    def estimates(self) -> Tensor:
        """[matches, slots, K]"""
        calibration, slots = self.drafter._lookup_calibration, torch.arange(SLOTS)
        matches = range(MAX_MATCH + 1)
        return torch.stack([calibration.estimate(torch.full_like(slots, match), slots) for match in matches])


@given(seed=st.integers(0, 10_000), min_match=st.integers(1, 2), num_prices=st.integers(0, 3))
@settings(deadline=None)
def test_both_learn_and_draft_the_same(seed: int, min_match: int, num_prices: int) -> None:
    generator = torch.Generator().manual_seed(seed)

    def draw(least: int, past: int, *shape: int) -> Tensor:
        return torch.randint(least, past, shape, generator=generator)

    compiled = Side(seed, min_match)
    with mock.patch.object(drafter_module, "lookup_kernels", return_value=None):
        plain = Side(seed, min_match)
    patches = [
        mock.patch.object(module, name, return_value=None)
        for module, name in (
            (states_module, "decision_kernels"),
            (ngram, "draft_kernels"),
            (prices_module, "draft_kernels"),
            (calibration_module, "calibration_kernels"),
        )
    ]
    for _ in range(3):
        slots = torch.randperm(SLOTS, generator=generator)[: int(draw(1, SLOTS + 1))]
        num_sequences = len(slots)
        proposing = torch.randperm(num_sequences, generator=generator)[: int(draw(1, num_sequences + 1))]
        wanted = draw(0, TREE_SIZE + 1, len(proposing)), draw(0, DEPTH + 1, len(proposing))
        costs = (torch.rand(num_prices, generator=generator) * 0.7).tolist()
        prices = [DraftPrice(2 * i, cost) for i, cost in enumerate(costs)]
        rows = {"slots": slots, "proposing": proposing, "max_drafts": wanted[0], "max_depth": wanted[1]}
        tree = compiled.draft(prices, **rows)
        for patch in patches:
            patch.start()
        try:
            expected = plain.draft(prices, **rows)
        finally:
            mock.patch.stopall()
        assert torch.equal(tree.num_drafts, expected.num_drafts)
        assert compiled.drafter.has_pending == plain.drafter.has_pending
        for side, made in ((compiled, tree), (plain, expected)):
            assert torch.equal(side.states.num_drafts[slots[proposing]], made.num_drafts)
            assert torch.equal(side.states.draft_token_ids[slots[proposing]], made.token_ids)
        for s, count in enumerate(tree.num_drafts.tolist()):
            assert torch.equal(tree.token_ids[s, :count], expected.token_ids[s, :count])
            assert torch.equal(tree.parents[s, :count], expected.parents[s, :count])

        # What came of it, for other sequences too: a chain of drafts each, of which some were checked.
        num_rows, num_decoding = int(draw(1, TREE_SIZE + 1)), int(draw(0, num_sequences + 1))
        parents = torch.arange(num_rows - 1).expand(num_sequences, -1).contiguous()
        checked = draw(0, min(num_rows - 1, DEPTH) + 1, num_sequences)
        came = {
            "token_ids": draw(0, 3, num_sequences, num_rows),
            "num_emitted": draw(0, num_rows + 1, num_sequences),
            "parents": parents,
            "on_path": ancestors(parents) if num_rows > 1 else None,
            "path": torch.arange(num_rows).expand(num_sequences, -1).contiguous(),
            "num_accepted": torch.minimum(checked, draw(0, DEPTH + 1, num_sequences)),
            "num_checked": checked,
        }
        counts = compiled.drafter.learn(slots, num_decoding, **came)
        expected_counts = plain.drafter.learn(slots, num_decoding, **came)
        assert (counts is None) == (expected_counts is None) == (num_rows == 1)
        if counts is not None and expected_counts is not None:
            assert torch.equal(counts, expected_counts)
        torch.testing.assert_close(compiled.estimates(), plain.estimates())
