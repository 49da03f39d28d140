"""Rank 0's part of speculation: makes each step's draft trees of what lookup and heads say, and learns from what came
true. Owns what must be remembered of a proposal until its step is over.

Must not know of models, collectives or the wire.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from shard.cpu.drafter import DrafterKernels, drafter_library
from shard.cuda.kernels import drafting_for
from shard.host_copy import integers, is_readable
from shard.speculation import Candidates, Continuation, DraftTree, Method
from shard.speculation.calibration import SUREST_HEAD, SUREST_LOOKUP, HeadCalibration, LookupCalibration
from shard.speculation.memory import Memory, Proposed
from shard.speculation.ngram import NgramLookup
from shard.speculation.prices import DevicePrices, HostPrices, Prices
from shard.speculation.tree import best_tree, chain
from shard.states import SequenceStates


@dataclass(frozen=True, slots=True)
class SpeculationSizes:
    """A tree has at most `tree_size` drafts, `num_speculative_tokens` deep; a head gives `tree_width` tokens."""

    num_speculative_tokens: int
    tree_size: int
    num_heads: int
    tree_width: int


class Drafter:
    """Tensors named `_pending` have a row per slot and hold what was proposed for it in the step before. Whether
    anything was the host knows where the device is readable; elsewhere `_asked_heads` and `_asked_lookup` say, 1 or 0.
    """

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
        self._pending_methods = integers(sizes.tree_size) + Method.NGRAM
        self._pending_continuation = Continuation(integers(depth), integers())
        self._pending_candidates = Candidates(integers(heads, width), integers(heads, width).float())
        self._asked_lookup, self._asked_heads = torch.zeros((), device=device), torch.zeros((), device=device)
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
        memory = Memory(
            Proposed(*self._pending_continuation, *self._pending_candidates, self._pending_methods),
            lookups=self._lookup_calibration.sums,
            own=self._lookup_calibration.own,
            heads=self._head_calibration.sums,
            least_match=lookup.min_match if lookup else 0,
            most_match=lookup.max_match if lookup else 0,
            surest_lookup=SUREST_LOOKUP,
            surest_head=SUREST_HEAD,
        )
        self._compiled = self._on_device = None
        if self._is_readable and (library := drafter_library()):
            self._compiled = DrafterKernels(library, memory)
        if not self._is_readable and (drafting := drafting_for(device)):
            self._on_device = drafting(memory, self._asked_lookup, self._asked_heads)
        self.reset()

    def reset(self) -> None:
        """Forgets what was learned; the slots are free."""
        self._head_calibration.reset()
        self._lookup_calibration.reset()
        self._forget()

    def learn(
        self,
        slots: Tensor,
        num_decoding: int,
        *,
        token_ids: Tensor,
        num_emitted: Tensor,
        parents: Tensor,
        on_path: Tensor | None,
        path: Tensor,
        num_accepted: Tensor,
        num_checked: Tensor,
    ) -> Tensor | None:
        """A step yielded the first `num_emitted` [S] of `token_ids` [S, D] for sequences in `slots` [S], of which the
        first `num_decoding` went on. What was proposed for those in the step before is compared with them, checked or
        not.

        Returns drafts by method and depth, checked and accepted: [S, 2, methods, K]. Of trees of `parents` [S, R - 1]
        with `on_path` [S, R, R] (see verify; None: there are no drafts, nor counts) the first `num_checked` [S] drafts
        count, and the first `num_accepted` [S] behind the root on `path` [S, D] were right.
        """
        if on_path is None and not self.has_pending:
            return None
        if self._on_device is not None:
            # With it all is forgotten.
            return self._on_device.learn(
                slots,
                num_decoding,
                token_ids=token_ids,
                num_emitted=num_emitted,
                on_path=on_path,
                path=path,
                num_accepted=num_accepted,
                num_checked=num_checked,
            )
        counts = None
        if on_path is not None:
            shape = len(slots), 2, len(Method), self.sizes.num_speculative_tokens
            counts = torch.zeros(shape, dtype=torch.int64, device=slots.device)
        if self._compiled is not None:
            self._compiled.learn(
                slots,
                num_decoding,
                token_ids=token_ids,
                num_emitted=num_emitted,
                parents=parents,
                path=path,
                num_accepted=num_accepted,
                num_checked=num_checked,
                counts=counts,
                from_lookups=self.has_pending and self._lookup is not None,
                from_heads=self.has_pending and self._has_candidates,
            )
        else:
            if self.has_pending:
                self._observe(slots[:num_decoding], token_ids[:num_decoding], num_emitted[:num_decoding])
            if counts is not None and on_path is not None:
                self._count(counts, slots, parents, on_path, path, num_accepted, num_checked)
        if self._is_readable:
            # Whoever drafts next forgets what there is.
            self.has_pending = False
        elif self.has_pending:
            self._forget()
        return counts

    def _observe(self, slots: Tensor, token_ids: Tensor, num_emitted: Tensor) -> None:
        if self._has_candidates:
            ids, probabilities = self._pending_candidates
            said = Candidates(ids[slots], probabilities[slots])
            was_asked = None if self._is_readable else self._asked_heads
            self._head_calibration.observe(said, token_ids, num_emitted, was_asked)
        if self._lookup is not None:
            ids, match_length = self._pending_continuation
            guess = Continuation(ids[slots], match_length[slots])
            was_asked = None if self._is_readable else self._asked_lookup
            self._lookup_calibration.observe(guess, slots, token_ids, num_emitted, was_asked)

    def begin(self, slots: list[int]) -> None:
        """Other sequences are in these slots now."""
        self._lookup_calibration.begin(integers(slots, self._device))

    def _forget(self) -> None:
        self._pending_continuation.match_length.zero_()
        if self._is_readable:
            self.has_pending = self._has_candidates = False
            return
        # Steps may have been replayed.
        self.has_pending, self._has_candidates = True, self.sizes.num_heads > 0
        self._asked_lookup.zero_()
        self._asked_heads.zero_()
        self._forget_candidates()

    def _forget_candidates(self) -> None:
        self._pending_candidates.token_ids.fill_(-1)
        self._pending_candidates.probabilities.zero_()

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
        `max_depth` [P] deep, as far as a sequence has room for them. By compiled functions, where there are any for
        such prices."""
        bounds = {"max_drafts": max_drafts, "max_depth": max_depth}
        if self._on_device is not None and isinstance(prices, DevicePrices):
            # Nothing is pending on such a device: it was forgotten when it was learned from.
            return self._on_device.propose(states, candidates, prices, slots=slots, proposing=proposing, **bounds)
        if self._compiled is None:
            return self._propose_in_torch(states, candidates, prices, slots=slots[proposing], **bounds)
        assert isinstance(prices, HostPrices)
        assert candidates is not None or self._lookup is not None, "a drafter without lookup needs heads"
        tree = self._compiled.propose(
            states.kept, candidates, prices.struct, slots=slots, proposing=proposing, **bounds
        )
        self.has_pending, self._has_candidates = True, candidates is not None
        return DraftTree(*tree)

    def _propose_in_torch(
        self,
        states: SequenceStates,
        candidates: Candidates | None,
        prices: Prices,
        *,
        slots: Tensor,
        max_drafts: Tensor,
        max_depth: Tensor,
    ) -> DraftTree:
        is_asked = None if self._is_readable else max_drafts > 0
        num_tokens, max_drafts, max_depth = states.bound_drafts(slots, max_drafts, max_depth)
        longest = int(num_tokens.max()) if self._is_readable else None
        tree = self.draft(
            states.token_ids[slots, :longest],
            candidates,
            slots=slots,
            num_tokens=num_tokens,
            max_drafts=max_drafts,
            max_depth=max_depth,
            prices=prices,
            is_asked=is_asked,
        )
        states.set_drafts(slots, tree)
        return tree

    def draft(
        self,
        history: Tensor,
        candidates: Candidates | None,
        *,
        slots: Tensor,
        num_tokens: Tensor,
        max_drafts: Tensor,
        max_depth: Tensor,
        prices: Prices,
        is_asked: Tensor | None = None,
    ) -> DraftTree:
        """Trees for sequences in `slots` [P], whose tokens are the first `num_tokens` [P] of `history` [P, L].

        `max_drafts` and `max_depth` [P] bound them; of what is left those are taken that bring most at these `prices`.
        Nothing is learned of a sequence that is not asked, `is_asked` [P]; None: all are.
        """
        self._forget()
        self.has_pending = True
        continuation = sure = None
        if self._lookup is not None:
            continuation = self._lookup.look_up(history, num_tokens)
            sure = self._lookup_calibration.estimate(continuation.match_length, slots)
            match_length = continuation.match_length
            self._pending_continuation.token_ids[slots] = continuation.token_ids
            self._pending_continuation.match_length[slots] = (
                match_length if is_asked is None else match_length * is_asked
            )
            if not self._is_readable:
                self._asked_lookup.fill_(1)
        if candidates is not None:
            self._has_candidates = True
            if self._is_readable:
                self._forget_candidates()
            else:
                self._asked_heads.fill_(1)
            ids, probabilities = candidates
            if is_asked is not None:
                ids = torch.where(is_asked[:, None, None], ids, -1)
                probabilities = probabilities * is_asked[:, None, None]
            self._pending_candidates.token_ids[slots] = ids
            self._pending_candidates.probabilities[slots] = probabilities
            marked = best_tree(
                self._reaching(candidates),
                continuation,
                sure,
                size=self.sizes.tree_size,
                max_drafts=max_drafts,
                max_depth=max_depth,
                least_probability=prices.least_probability,
            )
        else:
            assert continuation is not None, "a drafter without lookup needs heads"
            assert sure is not None
            bound = torch.minimum(max_drafts, max_depth)
            marked = chain(
                continuation,
                sure,
                size=self.sizes.tree_size,
                max_drafts=bound,
                least_probability=prices.least_probability,
            )
        # Of places without a draft too: the warm-up has drafts checked that nobody proposed.
        self._pending_methods[slots] = marked.methods.clamp_min(Method.NGRAM)
        return marked.tree._replace(num_drafts=prices.num_taken(marked.log_p, marked.tree.num_drafts))

    def _reaching(self, candidates: Candidates) -> Candidates:
        """With probabilities of being right, as far ahead as drafts may be: beyond the heads only lookup reaches."""
        missing = (0, 0, 0, self.sizes.num_speculative_tokens - self.sizes.num_heads)
        probabilities = self._head_calibration.estimate(candidates.probabilities)
        pad = torch.nn.functional.pad
        return Candidates(pad(candidates.token_ids, missing), pad(probabilities, missing))

    def _count(
        self,
        counts: Tensor,
        slots: Tensor,
        parents: Tensor,
        on_path: Tensor,
        path: Tensor,
        num_accepted: Tensor,
        num_checked: Tensor,
    ) -> None:
        num_drafts, deepest = parents.shape[1], self.sizes.num_speculative_tokens
        # Where nothing was accepted the mark falls on the root.
        accepted_rows = torch.where(torch.arange(path.shape[1], device=path.device) <= num_accepted[:, None], path, 0)
        is_accepted = torch.zeros_like(on_path[:, 0]).scatter_(1, accepted_rows, True)[:, 1:]
        is_checked = torch.arange(num_drafts, device=slots.device) < num_checked[:, None]
        depth = on_path.sum(2)[:, 1:] - 1
        cell = (self._pending_methods[slots, :num_drafts] - 1) * deepest + depth - 1
        # A draft that does not count may have any method or depth.
        cell = torch.where(is_checked, cell, 0)
        flat = counts.view(len(slots), 2, -1)
        flat[:, 0].scatter_add_(1, cell, is_checked.long())
        flat[:, 1].scatter_add_(1, cell, (is_checked & is_accepted).long())
