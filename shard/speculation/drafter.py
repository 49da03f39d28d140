"""Rank 0's part of speculation: makes each step's draft trees of what lookup and heads say, and learns from what came
true. Owns what must be remembered of a proposal until its step is over.

Must not know of models, collectives or the wire.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from shard.speculation import Candidates, Continuation, DraftTree, Method
from shard.speculation.calibration import HeadCalibration, LookupCalibration
from shard.speculation.ngram import NgramLookup
from shard.speculation.tree import MarkedTree, best_tree, break_even_probability, chain


@dataclass(frozen=True, slots=True)
class SpeculationSizes:
    """A tree has at most `tree_size` drafts, `num_speculative_tokens` deep; a head gives `tree_width` tokens."""

    num_speculative_tokens: int
    tree_size: int
    num_heads: int
    tree_width: int


class Drafter:
    """Tensors named `_pending` have a row per slot and hold the last proposal for it."""

    def __init__(
        self,
        sizes: SpeculationSizes,
        *,
        lookup: NgramLookup | None,
        head_factors: Tensor | None,
        num_slots: int,
        device: torch.device,
        least_probability: float | None = None,
    ) -> None:
        """`head_factors` [num_heads, tree_width] is where calibration starts (see HeadCalibration). Drafts below
        `least_probability` are not checked; None: below what the row cost says."""
        self.sizes = sizes
        self._lookup = lookup
        # What a row adds to a step's time, relative to a step of one row: measured by the warm-up.
        self.row_cost = 0.0
        self._least_probability = least_probability
        self._head_factors = torch.ones(sizes.num_heads, sizes.tree_width) if head_factors is None else head_factors
        depth, heads, width = sizes.num_speculative_tokens, sizes.num_heads, sizes.tree_width

        def integers(*shape: int) -> Tensor:
            return torch.zeros(num_slots, *shape, dtype=torch.int64, device=device)

        self._device = device
        self._pending_methods = integers(sizes.tree_size) + Method.NGRAM
        self._pending_continuation = Continuation(integers(depth), integers())
        self._pending_candidates = Candidates(integers(heads, width), integers(heads, width).float())
        self.reset()

    def reset(self) -> None:
        """Forgets what was learned; the slots are free."""
        self._head_calibration = HeadCalibration(self._head_factors.to(self._device, torch.float32))
        self._lookup_calibration = LookupCalibration(
            max_match=self._lookup.max_match if self._lookup else 0,
            num_speculative_tokens=self.sizes.num_speculative_tokens,
            device=self._device,
        )
        self.forget(torch.arange(len(self._pending_methods), device=self._device))

    def observe(self, slots: Tensor, token_ids: Tensor, num_emitted: Tensor) -> None:
        """A step yielded the first `num_emitted` [S] of `token_ids` [S, R] for sequences that decode in `slots` [S]."""
        if not self.sizes.num_heads:
            return
        depth = self.sizes.num_speculative_tokens
        places = torch.arange(depth, device=slots.device)
        truth = token_ids[:, :depth]
        truth = torch.nn.functional.pad(truth, (0, depth - truth.shape[1]))
        is_known = places < num_emitted[:, None]
        heads, candidates = self.sizes.num_heads, self._pending_candidates
        self._head_calibration.observe(
            Candidates(candidates.token_ids[slots], candidates.probabilities[slots]),
            truth[:, :heads],
            is_known[:, :heads],
        )
        if self._lookup is not None:
            ids, match_length = self._pending_continuation
            self._lookup_calibration.observe(Continuation(ids[slots], match_length[slots]), truth, is_known)

    def forget(self, slots: Tensor) -> None:
        """Nothing is proposed for these slots in this step: there is nothing to learn from the next."""
        if not self.sizes.num_heads:
            return
        self._pending_candidates.token_ids[slots] = -1
        self._pending_candidates.probabilities[slots] = 0
        if self._lookup is not None:
            self._pending_continuation.match_length[slots] = 0

    def draft(
        self,
        history: Tensor,
        candidates: Candidates | None,
        *,
        slots: Tensor,
        num_tokens: Tensor,
        max_drafts: Tensor,
        max_depth: Tensor,
        num_sequences: int,
    ) -> DraftTree:
        """Trees for sequences in `slots` [P], whose tokens are the first `num_tokens` [P] of `history` [P, L].

        `max_drafts` and `max_depth` [P] bound them; `num_sequences` is how many share a step.
        """
        continuation = self._lookup.look_up(history, num_tokens) if self._lookup is not None else None
        if candidates is None:
            assert continuation is not None, "a drafter without lookup needs heads"
            marked = chain(continuation, max_drafts=torch.minimum(max_drafts, max_depth))
        else:
            marked = self._tree(candidates, continuation, slots, max_drafts, max_depth, num_sequences)
        self._pending_methods[slots] = marked.methods
        return marked.tree

    def _tree(
        self,
        candidates: Candidates,
        continuation: Continuation | None,
        slots: Tensor,
        max_drafts: Tensor,
        max_depth: Tensor,
        num_sequences: int,
    ) -> MarkedTree:
        self._pending_candidates.token_ids[slots] = candidates.token_ids
        self._pending_candidates.probabilities[slots] = candidates.probabilities
        if continuation is not None:
            self._pending_continuation.token_ids[slots] = continuation.token_ids
            self._pending_continuation.match_length[slots] = continuation.match_length
        least = self._least_probability
        return best_tree(
            Candidates(candidates.token_ids, self._head_calibration.estimate(candidates.probabilities)),
            continuation,
            self._lookup_calibration.estimate(continuation.match_length) if continuation is not None else None,
            size=self.sizes.tree_size,
            max_drafts=max_drafts,
            max_depth=max_depth,
            least_probability=break_even_probability(self.row_cost, num_sequences) if least is None else least,
        )

    def counts(self, slots: Tensor, depth: Tensor, is_accepted: Tensor, num_checked: Tensor) -> Tensor:
        """Drafts of the slots [S] by method and depth, checked and accepted: [S, 2, methods, K].

        Of the drafts [S, R - 1] of each sequence: `depth` from 1, `is_accepted`; the first `num_checked` [S] count.
        """
        num_drafts, num_methods, deepest = depth.shape[1], len(Method), self.sizes.num_speculative_tokens
        is_checked = torch.arange(num_drafts, device=slots.device) < num_checked[:, None]
        cell = (self._pending_methods[slots, :num_drafts] - 1) * deepest + depth - 1
        counts = torch.zeros(len(slots), 2, num_methods * deepest, dtype=torch.int64, device=slots.device)
        # A draft that does not count may have any method or depth.
        cell = torch.where(is_checked, cell, 0)
        counts[:, 0].scatter_add_(1, cell, is_checked.long())
        counts[:, 1].scatter_add_(1, cell, (is_checked & is_accepted).long())
        return counts.view(len(slots), 2, num_methods, deepest)
