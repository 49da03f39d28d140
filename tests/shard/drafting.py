"""Two drafters that see the same random steps and must learn and draft the same, however they do it."""

from typing import Any
from unittest import mock

import torch
from torch import Tensor

from shard import states as states_module
from shard.speculation import Candidates, DraftPrice, DraftTree, Method, Yielded
from shard.speculation.drafter import Drafter, SpeculationSizes
from shard.speculation.ngram import NgramLookup
from shard.speculation.prices import Prices
from shard.speculation.verify import ancestors
from shard.states import SequenceStates

SLOTS, LENGTH, DEPTH, TREE_SIZE, MAX_MATCH, WIDTH = 5, 24, 3, 6, 4, 2
CPU = torch.device("cpu")


class Side:
    """One rank's drafter and states."""

    def __init__(self, seed: int, *, min_match: int | None, num_heads: int, device: torch.device = CPU) -> None:
        """`min_match` None: nothing is looked up."""
        self.device = device
        self.states = SequenceStates(
            num_slots=SLOTS, max_total_tokens=LENGTH, tree_size=TREE_SIZE, block_size=16, device=device
        )
        generator = torch.Generator().manual_seed(seed)
        # Few token ids, so that texts repeat themselves.
        self.states.token_ids.copy_(torch.randint(0, 3, (SLOTS + 1, LENGTH), generator=generator))
        num_tokens = torch.randint(1, LENGTH - 3, (SLOTS + 1,), generator=generator)
        self.states.num_tokens.copy_(num_tokens)
        # From no room at all on.
        self.states.max_num_tokens.copy_(num_tokens + torch.arange(SLOTS + 1) * 2 % 7)
        self.states.finished.copy_(torch.rand(SLOTS + 1, generator=generator) < 0.2)
        sizes = SpeculationSizes(
            num_speculative_tokens=DEPTH, tree_size=TREE_SIZE, num_heads=num_heads, tree_width=WIDTH
        )
        lookup = None
        if min_match is not None:
            lookup = NgramLookup(num_speculative_tokens=DEPTH, min_match=min_match, max_match=MAX_MATCH)
        factors = torch.rand(num_heads, WIDTH, generator=generator) + 0.5
        self.drafter = Drafter(sizes, lookup=lookup, head_factors=factors, num_slots=SLOTS, device=device)

    def draft(self, prices: Prices, candidates: Candidates | None, **rows: Tensor) -> DraftTree:
        there = {name: row.to(self.device) for name, row in rows.items()}
        if candidates is not None:
            candidates = Candidates(*(tensor.to(self.device) for tensor in candidates))
        with mock.patch.object(states_module, "decision_kernels", return_value=None):
            return self.drafter.propose(self.states, candidates, prices, **there)

    def learn(self, slots: Tensor, num_decoding: int, yielded: Yielded) -> Tensor | None:
        there: Any = [None if tensor is None else tensor.to(self.device) for tensor in yielded]
        return self.drafter.learn(slots.to(self.device), num_decoding, Yielded(*there))

    def beliefs(self) -> list[Tensor]:
        """Of lookups [matches, slots, K], and of heads [1, H, W]."""
        lookups, heads = self.drafter._lookup_calibration, self.drafter._head_calibration
        slots = torch.arange(SLOTS, device=self.device)
        matches = range(MAX_MATCH + 1 if self.drafter._lookup else 1)
        by_match = torch.stack([lookups.estimate(torch.full_like(slots, match), slots) for match in matches])
        said = torch.full((1, self.drafter.sizes.num_heads, WIDTH), 0.4, device=self.device)
        return [by_match, heads.estimate(said)]


def assert_same_steps(one: tuple[Side, Prices], other: tuple[Side, Prices], seed: int) -> None:
    """Each with prices, which are `random_prices` of the same seed."""
    generator = torch.Generator().manual_seed(seed)
    sides = one[0], other[0]
    sizes, lookup = sides[0].drafter.sizes, sides[0].drafter._lookup

    def draw(least: int, past: int, *shape: int) -> Tensor:
        return torch.randint(least, past, shape, generator=generator)

    for _ in range(4):
        slots = torch.randperm(SLOTS, generator=generator)[: int(draw(1, SLOTS + 1))]
        num_sequences = len(slots)
        proposing = torch.randperm(num_sequences, generator=generator)[: int(draw(1, num_sequences + 1))]
        proposed_slots = slots[proposing]
        rows = {
            "slots": slots,
            "proposing": proposing,
            "max_drafts": draw(0, TREE_SIZE + 1, len(proposing)),
            "max_depth": draw(0, DEPTH + 1, len(proposing)),
        }
        candidates = None
        if sizes.num_heads and (lookup is None or int(draw(0, 3))):
            # As heads give them: distinct tokens, best first, the heads' dimension not the outer one in memory.
            ids = torch.rand(sizes.num_heads, len(proposing), 4, generator=generator).argsort(2)[..., :WIDTH]
            said = torch.rand(sizes.num_heads, len(proposing), WIDTH, generator=generator) / WIDTH
            said = said.sort(2, descending=True).values
            # Some are no token at all.
            said[:, :, -1] *= draw(0, 2, sizes.num_heads, len(proposing))
            candidates = Candidates(ids.contiguous().transpose(0, 1), said.transpose(0, 1))
        made = [side.draft(prices, candidates, **rows) for side, prices in (one, other)]
        for side, tree in zip(sides, made, strict=True):
            assert side.drafter.has_pending
            assert torch.equal(side.states.num_drafts[proposed_slots], tree.num_drafts)
            assert torch.equal(side.states.draft_token_ids[proposed_slots], tree.token_ids)
        trees = [DraftTree(*(tensor.cpu() for tensor in tree)) for tree in made]
        assert torch.equal(trees[0].num_drafts, trees[1].num_drafts)
        for s, count in enumerate(trees[0].num_drafts.tolist()):
            assert torch.equal(trees[0].token_ids[s, :count], trees[1].token_ids[s, :count])
            assert torch.equal(trees[0].parents[s, :count], trees[1].parents[s, :count])
            slot = proposed_slots[s]
            methods = [side.drafter._memory.proposed.methods[slot, :count].cpu() for side in sides]
            assert torch.equal(*methods)

        # What came of it, for other sequences too: a tree each, of whose drafts some were checked.
        num_rows, num_decoding = int(draw(1, TREE_SIZE + 1)), int(draw(0, num_sequences + 1))
        checked = draw(0, num_rows, num_sequences)
        outcomes = [_random_tree(generator, num_rows, count) for count in checked.tolist()]
        parents = torch.tensor([parents for parents, _ in outcomes], dtype=torch.int64).view(num_sequences, -1)
        yielded = Yielded(
            token_ids=draw(0, 3, num_sequences, num_rows),
            num_emitted=draw(0, num_rows + 1, num_sequences),
            parents=parents,
            on_path=ancestors(parents) if num_rows > 1 else None,
            path=torch.tensor([path + [num_rows - 1] * (num_rows - len(path)) for _, path in outcomes]),
            num_accepted=torch.tensor([len(path) - 1 for _, path in outcomes]),
            num_checked=checked,
        )
        # Drafts beyond those that the trees have are of no method in particular.
        num_drafts = torch.zeros(SLOTS, dtype=torch.int64)
        num_drafts[proposed_slots] = trees[0].num_drafts
        drafted = torch.arange(TREE_SIZE) < num_drafts[:, None]
        for side in sides:
            side.drafter._memory.proposed.methods[~drafted.to(side.device)] = Method.NGRAM
        counts, expected = (side.learn(slots, num_decoding, yielded) for side in sides)
        assert (counts is None) == (expected is None) == (num_rows == 1)
        if counts is not None and expected is not None:
            assert torch.equal(counts, expected)
        for found, wanted in zip(*(side.beliefs() for side in sides), strict=True):
            torch.testing.assert_close(found, wanted)


def _random_tree(generator: torch.Generator, num_rows: int, num_checked: int) -> tuple[list[int], list[int]]:
    """Parents of the rows behind the root, and the way from there to one of the first `num_checked` of them."""
    ways = [[0]]
    for row in range(1, num_rows):
        open_rows = [i for i, way in enumerate(ways) if len(way) <= DEPTH]
        parent = open_rows[int(torch.randint(len(open_rows), (), generator=generator))]
        ways.append([*ways[parent], row])
    return [way[-2] for way in ways[1:]], ways[int(torch.randint(num_checked + 1, (), generator=generator))]


def random_prices(seed: int, count: int) -> list[DraftPrice]:
    costs = (torch.rand(count, generator=torch.Generator().manual_seed(seed)) * 0.6).tolist()
    return [DraftPrice(2 * i, cost) for i, cost in enumerate(costs)]
