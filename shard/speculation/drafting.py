"""A drafter's work by torch's operations, on any device: the reference of what compiled functions and kernels do.

Where the host may look at values it does; elsewhere there is room for all that may be, and what nobody asked for has no
weight.
"""

import torch
from torch import Tensor

from shard.speculation import Candidates, Continuation, DraftTree, Method, Yielded
from shard.speculation.calibration import HeadCalibration, LookupCalibration
from shard.speculation.memory import Memory
from shard.speculation.ngram import NgramLookup
from shard.speculation.prices import Prices
from shard.speculation.tree import best_tree, chain
from shard.states import SequenceStates


class TorchDrafting:
    """Over one drafter's memory, of which both calibrations are a part."""

    def __init__(
        self,
        memory: Memory,
        lookup: NgramLookup | None,
        lookup_calibration: LookupCalibration,
        head_calibration: HeadCalibration,
        *,
        looks: bool,
    ) -> None:
        """`looks`: the host may look at values."""
        self._memory = memory
        self._lookup = lookup
        self._lookup_calibration, self._head_calibration = lookup_calibration, head_calibration
        self._looks = looks

    def forget(self) -> None:
        """What was proposed before."""
        self._memory.proposed.matches.zero_()
        if not self._looks:
            self._memory.asked_lookup.zero_()
            self._memory.asked_heads.zero_()
            self._forget_candidates()

    def _forget_candidates(self) -> None:
        self._memory.proposed.said_ids.fill_(-1)
        self._memory.proposed.said.zero_()

    def learn(
        self,
        slots: Tensor,
        num_decoding: int,
        yielded: Yielded,
        counts: Tensor | None,
        *,
        from_lookups: bool,
        from_heads: bool,
    ) -> None:
        """As Drafter.learn. Adds to counts [S, 2, methods, K]; from whom there may be something to learn."""
        memory, proposed = self._memory, self._memory.proposed
        decoding = slots[:num_decoding]
        came = yielded.token_ids[:num_decoding], yielded.num_emitted[:num_decoding]
        if from_heads:
            said = Candidates(proposed.said_ids[decoding], proposed.said[decoding])
            self._head_calibration.observe(said, *came, None if self._looks else memory.asked_heads)
        if from_lookups:
            guess = Continuation(proposed.ids[decoding], proposed.matches[decoding])
            self._lookup_calibration.observe(guess, decoding, *came, None if self._looks else memory.asked_lookup)
        if counts is not None and yielded.on_path is not None:
            self._count(counts, slots, yielded, yielded.on_path)

    def _count(self, counts: Tensor, slots: Tensor, yielded: Yielded, on_path: Tensor) -> None:
        path, num_accepted, num_checked = yielded.path, yielded.num_accepted, yielded.num_checked
        num_drafts, deepest = yielded.parents.shape[1], counts.shape[3]
        # Where nothing was accepted the mark falls on the root.
        accepted_rows = torch.where(torch.arange(path.shape[1], device=path.device) <= num_accepted[:, None], path, 0)
        is_accepted = torch.zeros_like(on_path[:, 0]).scatter_(1, accepted_rows, True)[:, 1:]
        is_checked = torch.arange(num_drafts, device=slots.device) < num_checked[:, None]
        depth = on_path.sum(2)[:, 1:] - 1
        cell = (self._memory.proposed.methods[slots, :num_drafts] - 1) * deepest + depth - 1
        # A draft that does not count may have any method or depth.
        cell = torch.where(is_checked, cell, 0)
        flat = counts.view(len(slots), 2, -1)
        flat[:, 0].scatter_add_(1, cell, is_checked.long())
        flat[:, 1].scatter_add_(1, cell, (is_checked & is_accepted).long())

    def propose(
        self,
        states: SequenceStates,
        candidates: Candidates | None,
        prices: Prices,
        *,
        slots: Tensor,
        max_drafts: Tensor,
        max_depth: Tensor,
    ) -> DraftTree:
        """As Drafter.propose, for sequences in `slots` [P]."""
        # Nothing is learned of who wants no drafts.
        is_asked = None if self._looks else max_drafts > 0
        num_tokens, max_drafts, max_depth = states.bound_drafts(slots, max_drafts, max_depth)
        self.forget()
        continuation = sure = None
        if self._lookup is not None:
            longest = int(num_tokens.max()) if self._looks else None
            continuation = self._lookup.look_up(states.token_ids[slots, :longest], num_tokens)
            sure = self._lookup_calibration.estimate(continuation.match_length, slots)
            self._remember_continuation(continuation, slots, is_asked)
        size = self._memory.proposed.methods.shape[1]
        if candidates is not None:
            self._remember_candidates(candidates, slots, is_asked)
            marked = best_tree(
                self._reaching(candidates),
                continuation,
                sure,
                size=size,
                max_drafts=max_drafts,
                max_depth=max_depth,
                least_probability=prices.least_probability,
            )
        else:
            assert continuation is not None
            assert sure is not None
            bound = torch.minimum(max_drafts, max_depth)
            marked = chain(continuation, sure, size=size, max_drafts=bound, least_probability=prices.least_probability)
        # Of places without a draft too: the warm-up has drafts checked that nobody proposed.
        self._memory.proposed.methods[slots] = marked.methods.clamp_min(Method.NGRAM)
        tree = marked.tree._replace(num_drafts=prices.num_taken(marked.log_p, marked.tree.num_drafts))
        states.set_drafts(slots, tree)
        return tree

    def _remember_continuation(self, continuation: Continuation, slots: Tensor, is_asked: Tensor | None) -> None:
        ids, match_length = continuation
        self._memory.proposed.ids[slots] = ids
        self._memory.proposed.matches[slots] = match_length if is_asked is None else match_length * is_asked
        if not self._looks:
            self._memory.asked_lookup.fill_(1)

    def _remember_candidates(self, candidates: Candidates, slots: Tensor, is_asked: Tensor | None) -> None:
        if self._looks:
            self._forget_candidates()
        else:
            self._memory.asked_heads.fill_(1)
        ids, probabilities = candidates
        if is_asked is not None:
            ids = torch.where(is_asked[:, None, None], ids, -1)
            probabilities = probabilities * is_asked[:, None, None]
        self._memory.proposed.said_ids[slots] = ids
        self._memory.proposed.said[slots] = probabilities

    def _reaching(self, candidates: Candidates) -> Candidates:
        """With probabilities of being right, as far ahead as drafts may be: beyond the heads only lookup reaches."""
        depth, num_heads = self._memory.proposed.ids.shape[1], self._memory.proposed.said.shape[1]
        missing = (0, 0, 0, depth - num_heads)
        probabilities = self._head_calibration.estimate(candidates.probabilities)
        pad = torch.nn.functional.pad
        return Candidates(pad(candidates.token_ids, missing), pad(probabilities, missing))
