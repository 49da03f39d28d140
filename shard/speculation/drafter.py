"""Rank 0's part of speculation: makes each step's draft trees of what lookup and heads say, and learns from what came
true. Owns what must be remembered of a proposal until its step is over; the work is done by compiled functions, by
kernels on the device or by torch's operations (drafting.py).

Must not know of models, collectives or the wire.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from shard.cpu.drafter import DrafterKernels, drafter_library
from shard.cuda.kernels import drafting_for
from shard.host_copy import integers, is_readable
from shard.speculation import Candidates, DraftTree, Method, Yielded
from shard.speculation.calibration import SUREST_HEAD, SUREST_LOOKUP, HeadCalibration, LookupCalibration
from shard.speculation.drafting import TorchDrafting
from shard.speculation.memory import Memory, Proposed
from shard.speculation.ngram import NgramLookup
from shard.speculation.prices import DevicePrices, HostPrices, Prices
from shard.states import SequenceStates


@dataclass(frozen=True, slots=True)
class SpeculationSizes:
    """A tree has at most `tree_size` drafts, `num_speculative_tokens` deep; a head gives `tree_width` tokens."""

    num_speculative_tokens: int
    tree_size: int
    num_heads: int
    tree_width: int


class Drafter:
    """Whether anything was proposed in the step before the host knows where the device is readable; elsewhere the
    memory's marks of who was asked say."""

    def __init__(
        self,
        sizes: SpeculationSizes,
        *,
        lookup: NgramLookup | None,
        head_factors: Tensor | None,
        num_slots: int,
        device: torch.device,
    ) -> None:
        """`head_factors` [num_heads, tree_width] is where calibration starts (see HeadCalibration)."""
        self.sizes = sizes
        self._lookup = lookup
        depth, heads, width = sizes.num_speculative_tokens, sizes.num_heads, sizes.tree_width

        def integers(*shape: int) -> Tensor:
            return torch.zeros(num_slots, *shape, dtype=torch.int64, device=device)

        self._device = device
        self._is_readable = is_readable(device)
        # Whether there may be something to learn from.
        self.has_pending = self._has_candidates = False
        factors = torch.ones(heads, width) if head_factors is None else head_factors
        self._head_calibration = HeadCalibration(factors.to(device, torch.float32))
        self._lookup_calibration = LookupCalibration(
            max_match=lookup.max_match if lookup else 0,
            num_speculative_tokens=depth,
            num_slots=num_slots,
            device=device,
        )
        self._memory = Memory(
            Proposed(
                ids=integers(depth),
                matches=integers(),
                said_ids=integers(heads, width),
                said=integers(heads, width).float(),
                methods=integers(sizes.tree_size) + Method.NGRAM,
            ),
            asked_lookup=torch.zeros((), device=device),
            asked_heads=torch.zeros((), device=device),
            lookups=self._lookup_calibration.sums,
            own=self._lookup_calibration.own,
            heads=self._head_calibration.sums,
            least_match=lookup.min_match if lookup else 0,
            most_match=lookup.max_match if lookup else 0,
            surest_lookup=SUREST_LOOKUP,
            surest_head=SUREST_HEAD,
        )
        self._operations = TorchDrafting(
            self._memory, lookup, self._lookup_calibration, self._head_calibration, looks=self._is_readable
        )
        self._compiled = self._on_device = None
        if self._is_readable and (library := drafter_library()):
            self._compiled = DrafterKernels(library, self._memory)
        if not self._is_readable and (drafting := drafting_for(device)):
            self._on_device = drafting(self._memory)
        self.reset()

    def reset(self) -> None:
        """Forgets what was learned; the slots are free."""
        self._head_calibration.reset()
        self._lookup_calibration.reset()
        self._forget()

    def learn(self, slots: Tensor, num_decoding: int, yielded: Yielded) -> Tensor | None:
        """A step yielded so much for sequences in `slots` [S], of which the first `num_decoding` went on. What was
        proposed for those in the step before is compared with their tokens, checked or not.

        Returns drafts by method and depth, checked and accepted: [S, 2, methods, K]; None where there were no drafts.
        """
        if yielded.on_path is None and not self.has_pending:
            return None
        if self._on_device is not None:
            # With it all is forgotten.
            return self._on_device.learn(slots, num_decoding, yielded)
        counts = None
        if yielded.on_path is not None:
            shape = len(slots), 2, len(Method), self.sizes.num_speculative_tokens
            counts = torch.zeros(shape, dtype=torch.int64, device=slots.device)
        work = self._compiled or self._operations
        work.learn(
            slots,
            num_decoding,
            yielded,
            counts,
            from_lookups=self.has_pending and self._lookup is not None,
            from_heads=self.has_pending and self._has_candidates,
        )
        if self._is_readable:
            # Whoever drafts next forgets what there is.
            self.has_pending = False
        elif self.has_pending:
            self._forget()
        return counts

    def begin(self, slots: list[int]) -> None:
        """Other sequences are in these slots now."""
        self._lookup_calibration.begin(integers(slots, self._device))

    def propose(
        self,
        states: SequenceStates,
        candidates: Candidates | None,
        prices: Prices,
        *,
        slots: Tensor,
        proposing: Tensor,
        max_drafts: Tensor,
        max_depth: Tensor,
    ) -> DraftTree:
        """Trees for those of `slots` [S] at `proposing` [P], made pending, of at most `max_drafts` [P] drafts,
        `max_depth` [P] deep, as far as a sequence has room for them; of what is left those are taken that bring most at
        these `prices`."""
        assert candidates is not None or self._lookup is not None, "a drafter without lookup needs heads"
        bounds = {"max_drafts": max_drafts, "max_depth": max_depth}
        if self._on_device is not None and isinstance(prices, DevicePrices):
            # Nothing is pending on such a device: it was forgotten when it was learned from.
            return self._on_device.propose(states, candidates, prices, slots=slots, proposing=proposing, **bounds)
        if self._compiled is None:
            tree = self._operations.propose(states, candidates, prices, slots=slots[proposing], **bounds)
        else:
            assert isinstance(prices, HostPrices)
            tree = DraftTree(
                *self._compiled.propose(
                    states.kept, candidates, prices.struct, slots=slots, proposing=proposing, **bounds
                )
            )
        if self._is_readable:
            self.has_pending, self._has_candidates = True, candidates is not None
        return tree

    def _forget(self) -> None:
        self._operations.forget()
        # Where the host does not look, steps may have been replayed.
        self.has_pending = not self._is_readable
        self._has_candidates = not self._is_readable and self.sizes.num_heads > 0
