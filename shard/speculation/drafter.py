"""Rank 0's part of speculation: makes each step's draft trees of what lookup and heads say, and learns from what came
true. Owns what must be remembered of a proposal until its step is over.

Must not know of models, collectives or the wire.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from shard.host_copy import integers
from shard.speculation import Candidates, Continuation, DraftPrice, DraftTree, Method
from shard.speculation.calibration import HeadCalibration, LookupCalibration
from shard.speculation.ngram import NgramLookup
from shard.speculation.prices import worth_most
from shard.speculation.tree import best_tree, chain


@dataclass(frozen=True, slots=True)
class SpeculationSizes:
    """A tree has at most `tree_size` drafts, `num_speculative_tokens` deep; a head gives `tree_width` tokens."""

    num_speculative_tokens: int
    tree_size: int
    num_heads: int
    tree_width: int


class Drafter:
    """Tensors named `_pending` have a row per slot and hold the last proposal for it, those of heads only where
    `_has_candidates`."""

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
            num_slots=len(self._pending_methods),
            device=self._device,
        )
        self._forget()

    def observe(self, slots: Tensor, token_ids: Tensor, num_emitted: Tensor) -> None:
        """A step yielded the first `num_emitted` [S] of `token_ids` [S, R] for sequences that decode in `slots` [S].
        What was proposed in the step before is compared with them, checked or not."""
        self.has_pending = False
        if self._has_candidates:
            ids, probabilities = self._pending_candidates
            self._head_calibration.observe(Candidates(ids[slots], probabilities[slots]), token_ids, num_emitted)
        if self._lookup is not None:
            ids, match_length = self._pending_continuation
            said = Continuation(ids[slots], match_length[slots])
            self._lookup_calibration.observe(said, slots, token_ids, num_emitted)

    def begin(self, slots: list[int]) -> None:
        """Other sequences are in these slots now."""
        self._lookup_calibration.begin(integers(slots, self._device))

    def _forget(self) -> None:
        self.has_pending = self._has_candidates = False
        self._pending_candidates.token_ids.fill_(-1)
        self._pending_candidates.probabilities.zero_()
        self._pending_continuation.match_length.zero_()

    def draft(
        self,
        history: Tensor,
        candidates: Candidates | None,
        *,
        slots: Tensor,
        num_tokens: Tensor,
        max_drafts: Tensor,
        max_depth: Tensor,
        prices: Sequence[DraftPrice] = (),
    ) -> DraftTree:
        """Trees for sequences in `slots` [P], whose tokens are the first `num_tokens` [P] of `history` [P, L].

        `max_drafts` and `max_depth` [P] bound them; of what is left those are taken that bring most at these `prices`.
        """
        least_probability = min((price.probability for price in prices), default=0.0)
        self._forget()
        self.has_pending = True
        continuation = sure = None
        if self._lookup is not None:
            continuation = self._lookup.look_up(history, num_tokens)
            sure = self._lookup_calibration.estimate(continuation.match_length, slots)
            self._pending_continuation.token_ids[slots] = continuation.token_ids
            self._pending_continuation.match_length[slots] = continuation.match_length
        if candidates is not None:
            self._has_candidates = True
            self._pending_candidates.token_ids[slots] = candidates.token_ids
            self._pending_candidates.probabilities[slots] = candidates.probabilities
            marked = best_tree(
                self._reaching(candidates),
                continuation,
                sure,
                size=self.sizes.tree_size,
                max_drafts=max_drafts,
                max_depth=max_depth,
                least_probability=least_probability,
            )
        else:
            assert continuation is not None, "a drafter without lookup needs heads"
            assert sure is not None
            bound = torch.minimum(max_drafts, max_depth)
            marked = chain(
                continuation, sure, size=self.sizes.tree_size, max_drafts=bound, least_probability=least_probability
            )
        # Of places without a draft too: the warm-up has drafts checked that nobody proposed.
        self._pending_methods[slots] = marked.methods.clamp_min(Method.NGRAM)
        return marked.tree._replace(num_drafts=worth_most(marked.log_p, marked.tree.num_drafts, prices))

    def _reaching(self, candidates: Candidates) -> Candidates:
        """With probabilities of being right, as far ahead as drafts may be: beyond the heads only lookup reaches."""
        missing = (0, 0, 0, self.sizes.num_speculative_tokens - self.sizes.num_heads)
        probabilities = self._head_calibration.estimate(candidates.probabilities)
        pad = torch.nn.functional.pad
        return Candidates(pad(candidates.token_ids, missing), pad(probabilities, missing))

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
