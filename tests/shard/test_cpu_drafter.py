"""A compiled drafter against one that works by torch's operations: both see the same steps."""

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
from shard.speculation import Candidates, DraftPrice, DraftTree, Method
from shard.speculation import drafter as drafter_module
from shard.speculation.drafter import Drafter, SpeculationSizes
from shard.speculation.ngram import NgramLookup
from shard.speculation.prices import HostPrices
from shard.speculation.verify import ancestors
from shard.states import SequenceStates

SLOTS, LENGTH, DEPTH, TREE_SIZE, MAX_MATCH, WIDTH = 5, 24, 3, 6, 4, 2


class Side:
    """One rank's drafter and states."""

    def __init__(self, seed: int, *, min_match: int | None, num_heads: int) -> None:
        """`min_match` None: nothing is looked up."""
        cpu = torch.device("cpu")
        self.states = SequenceStates(
            num_slots=SLOTS, max_total_tokens=LENGTH, tree_size=TREE_SIZE, block_size=16, device=cpu
        )
        generator = torch.Generator().manual_seed(seed)
        # Few token ids, so that texts repeat themselves.
        self.states.token_ids.random_(0, 3, generator=generator)
        self.states.num_tokens.random_(1, LENGTH - 3, generator=generator)
        # From no room at all on.
        self.states.max_num_tokens.copy_(self.states.num_tokens + torch.arange(SLOTS + 1) * 2 % 7)
        self.states.finished[:] = torch.rand(SLOTS + 1, generator=generator) < 0.2
        sizes = SpeculationSizes(
            num_speculative_tokens=DEPTH, tree_size=TREE_SIZE, num_heads=num_heads, tree_width=WIDTH
        )
        lookup = None
        if min_match is not None:
            lookup = NgramLookup(num_speculative_tokens=DEPTH, min_match=min_match, max_match=MAX_MATCH)
        factors = torch.rand(num_heads, WIDTH, generator=generator) + 0.5
        self.drafter = Drafter(sizes, lookup=lookup, head_factors=factors, num_slots=SLOTS, device=cpu)
        nothing: Any = None
        self._step = DeviceStep(
            model=nothing, vocab_size=0, cache=nothing, states=self.states, group=TPGroup(), drafter=self.drafter
        )

    def draft(self, prices: list[DraftPrice], candidates: Candidates | None, **rows: Tensor) -> DraftTree:
        layout: Any = SimpleNamespace(rows=SimpleNamespace(**rows))
        with mock.patch.object(states_module, "decision_kernels", return_value=None):
            return self._step._draft(self.drafter, layout, HostPrices(prices), candidates)

    def beliefs(self) -> list[Tensor]:
        """Of lookups [matches, slots, K], and of heads [1, H, W]."""
        lookups, heads, slots = (
            self.drafter._lookup_calibration,
            self.drafter._head_calibration,
            torch.arange(SLOTS),
        )
        matches = range(MAX_MATCH + 1 if self.drafter._lookup else 1)
        by_match = torch.stack([lookups.estimate(torch.full_like(slots, match), slots) for match in matches])
        return [by_match, heads.estimate(torch.full((1, self.drafter.sizes.num_heads, WIDTH), 0.4))]


@given(
    seed=st.integers(0, 10_000),
    min_match=st.sampled_from([None, 1, 2]),
    num_heads=st.sampled_from([0, 2, DEPTH + 1]),
    num_prices=st.integers(0, 3),
)
@settings(deadline=None, max_examples=150)
def test_both_learn_and_draft_the_same(seed: int, min_match: int | None, num_heads: int, num_prices: int) -> None:
    generator = torch.Generator().manual_seed(seed)

    def draw(least: int, past: int, *shape: int) -> Tensor:
        return torch.randint(least, past, shape, generator=generator)

    if not num_heads:
        min_match = min_match or 1
    compiled = Side(seed, min_match=min_match, num_heads=num_heads)
    with mock.patch.object(drafter_module, "drafter_library", return_value=None):
        plain = Side(seed, min_match=min_match, num_heads=num_heads)
    assert compiled.drafter._compiled is not None
    assert plain.drafter._compiled is None
    for _ in range(4):
        slots = torch.randperm(SLOTS, generator=generator)[: int(draw(1, SLOTS + 1))]
        num_sequences = len(slots)
        proposing = torch.randperm(num_sequences, generator=generator)[: int(draw(1, num_sequences + 1))]
        costs = (torch.rand(num_prices, generator=generator) * 0.6).tolist()
        prices = [DraftPrice(2 * i, cost) for i, cost in enumerate(costs)]
        rows = {
            "slots": slots,
            "proposing": proposing,
            "max_drafts": draw(0, TREE_SIZE + 1, len(proposing)),
            "max_depth": draw(0, DEPTH + 1, len(proposing)),
        }
        candidates = None
        if num_heads and (min_match is None or int(draw(0, 3))):
            # As heads give them: distinct tokens, best first, the heads' dimension not the outer one in memory.
            ids = torch.rand(num_heads, len(proposing), 4, generator=generator).argsort(2)[..., :WIDTH]
            said = torch.rand(num_heads, len(proposing), WIDTH, generator=generator) / WIDTH
            said = said.sort(2, descending=True).values
            # Some are no token at all.
            said[:, :, -1] *= draw(0, 2, num_heads, len(proposing))
            candidates = Candidates(ids.transpose(0, 1), said.transpose(0, 1))
        trees = [side.draft(prices, candidates, **rows) for side in (compiled, plain)]
        assert torch.equal(trees[0].num_drafts, trees[1].num_drafts)
        for side, tree in zip((compiled, plain), trees, strict=True):
            assert side.drafter.has_pending
            assert torch.equal(side.states.num_drafts[slots[proposing]], tree.num_drafts)
            assert torch.equal(side.states.draft_token_ids[slots[proposing]], tree.token_ids)
        for s, count in enumerate(trees[0].num_drafts.tolist()):
            assert torch.equal(trees[0].token_ids[s, :count], trees[1].token_ids[s, :count])
            assert torch.equal(trees[0].parents[s, :count], trees[1].parents[s, :count])

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
        # Drafts beyond those that the trees have are of no method in particular.
        num_drafts = torch.zeros(SLOTS, dtype=torch.int64)
        num_drafts[slots[proposing]] = trees[0].num_drafts
        drafted = torch.arange(TREE_SIZE) < num_drafts[:, None]
        for side in (compiled, plain):
            side.drafter._pending_methods[~drafted] = Method.NGRAM
        counts, expected = (side.drafter.learn(slots, num_decoding, **came) for side in (compiled, plain))
        assert (counts is None) == (expected is None) == (num_rows == 1)
        if counts is not None and expected is not None:
            assert torch.equal(counts, expected)
        for found, wanted in zip(compiled.beliefs(), plain.beliefs(), strict=True):
            torch.testing.assert_close(found, wanted)
