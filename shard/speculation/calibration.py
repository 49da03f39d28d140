"""How often proposers are right, learned from what came true.

Must not know of trees: what a proposer said is compared with the tokens that the model then yielded, whether a draft
of it was checked or not.
"""

import torch
from torch import Tensor

from shard.speculation import Candidates, Continuation
from shard.speculation.memory import OwnSums, Sums

# Of each step's evidence so much is left after the next: a memory of some two thousand steps.
_KEPT = 0.9995
# Weight of what is believed before there is evidence, in observations that are expected to come true.
_PRIOR_WEIGHT = 4.0
# The same of one sequence: a memory of some twenty matches, and what it begins with.
_OWN_KEPT = 0.95
_OWN_PRIOR_WEIGHT = 2.0
# No lookup is believed more, and no head.
SUREST_LOOKUP, SUREST_HEAD = 0.99, 0.999


class _Ratio:
    """A ratio of two sums that begins at `prior` and forgets; both keep the shape of `prior`."""

    def __init__(self, prior: Tensor) -> None:
        self._prior = (prior * _PRIOR_WEIGHT).contiguous()
        self._above = self._prior.clone()
        self._below = torch.full_like(prior, _PRIOR_WEIGHT)

    @property
    def value(self) -> Tensor:
        return self._above / self._below

    @property
    def sums(self) -> Sums:
        return Sums(self._above, self._below, self._prior, _KEPT, _PRIOR_WEIGHT)

    def reset(self) -> None:
        self._above.copy_(self._prior)
        self._below.fill_(_PRIOR_WEIGHT)

    def add(self, above: Tensor, below: Tensor, was_asked: Tensor | None) -> None:
        """Nothing is forgotten where `was_asked` [] is 0."""
        forgotten = 1 - _KEPT if was_asked is None else (1 - _KEPT) * was_asked
        # What is forgotten is replaced by the prior: a proposer that was given up is tried again in time.
        self._above.lerp_(self._prior, forgotten).add_(above)
        self._below.lerp_(torch.full_like(self._below, _PRIOR_WEIGHT), forgotten).add_(below)


class HeadCalibration:
    """Turns each head's own softmax into probabilities of being right, by head and rank.

    A head is too sure or too modest at a rank by about the same factor everywhere, and that factor is learned:
    how often the candidate was right over how often its probabilities said it would be. Evidence for head i exists in
    steps that yielded more than i tokens, so it is given that the path before was right, as a tree needs it.
    """

    def __init__(self, factors: Tensor) -> None:
        """`factors` [H, W] float32 are what is believed at first, ones where nothing is known."""
        self._factors = _Ratio(factors)

    @property
    def sums(self) -> Sums:
        """They stay where they are."""
        return self._factors.sums

    def reset(self) -> None:
        self._factors.reset()

    def estimate(self, probabilities: Tensor) -> Tensor:
        """[S, H, W] by the heads' softmax -> probabilities of being right."""
        return (probabilities * self._factors.value).clamp_max(SUREST_HEAD)

    def observe(
        self, candidates: Candidates, token_ids: Tensor, num_known: Tensor, was_asked: Tensor | None = None
    ) -> None:
        """The candidates were guesses of `token_ids` [S, R], of which the first `num_known` [S] are true. `was_asked`
        [] float32 is 0 where nothing was asked for; None: it was."""
        truth, is_known = _truth(token_ids, num_known, candidates.token_ids.shape[1])
        known = is_known[:, :, None]
        right = (candidates.token_ids == truth[:, :, None]) & known
        self._factors.add(right.sum(0).float(), (candidates.probabilities * known).sum(0), was_asked)


class LookupCalibration:
    """Probability that each token of a looked-up continuation is right, given that those before it were: by the length
    of the match and the place over all sequences. The first token's is times how much more or less often it was right
    in this sequence; whoever is past it copies, wherever he is."""

    def __init__(self, *, max_match: int, num_speculative_tokens: int, num_slots: int, device: torch.device) -> None:
        match = torch.arange(max_match + 1, device=device)[:, None]
        place = torch.arange(num_speculative_tokens, device=device)
        # Longer matches and places further in are the surer ones.
        agreement = (match + place).float()
        self._right = _Ratio(agreement / (agreement + 2))
        # By slot: first tokens that were right, and what all sequences said of them.
        self._own_right = torch.full((num_slots,), _OWN_PRIOR_WEIGHT, device=device)
        self._own_said = self._own_right.clone()

    @property
    def sums(self) -> Sums:
        """Those of all sequences; they stay where they are."""
        return self._right.sums

    @property
    def own(self) -> OwnSums:
        """Those of each, likewise."""
        return OwnSums(self._own_right, self._own_said, _OWN_KEPT, _OWN_PRIOR_WEIGHT)

    def reset(self) -> None:
        self._right.reset()
        self._own_right.fill_(_OWN_PRIOR_WEIGHT)
        self._own_said.fill_(_OWN_PRIOR_WEIGHT)

    def begin(self, slots: Tensor) -> None:
        """Other sequences are in these slots now."""
        self._own_right[slots] = self._own_said[slots] = _OWN_PRIOR_WEIGHT

    def estimate(self, match_length: Tensor, slots: Tensor) -> Tensor:
        """[S], [S] -> [S, K]."""
        estimate = self._right.value[match_length]
        estimate[:, 0] *= self._own_right[slots] / self._own_said[slots]
        return estimate.clamp_max_(SUREST_LOOKUP)

    def observe(
        self,
        continuation: Continuation,
        slots: Tensor,
        token_ids: Tensor,
        num_known: Tensor,
        was_asked: Tensor | None = None,
    ) -> None:
        """The continuation was a guess of `token_ids` [S, R], of which the first `num_known` [S] are true. `was_asked`
        [] float32 is 0 where nothing was asked for; None: it was."""
        truth, is_known = _truth(token_ids, num_known, continuation.token_ids.shape[1])
        is_right = continuation.token_ids == truth
        before = torch.nn.functional.pad(is_right.long().cumprod(1)[:, :-1], (1, 0), value=1)
        counted = (is_known & (before > 0) & (continuation.match_length > 0)[:, None]).float()
        first = counted[:, 0]
        kept = torch.where(first > 0, _OWN_KEPT, 1.0)
        said = self._right.value[continuation.match_length, 0] * first
        for sums, new in ((self._own_right, first * is_right[:, 0]), (self._own_said, said)):
            sums[slots] = _OWN_PRIOR_WEIGHT + (sums[slots] - _OWN_PRIOR_WEIGHT) * kept + new
        right, tested = torch.zeros_like(self._right.value), torch.zeros_like(self._right.value)
        right.index_add_(0, continuation.match_length, counted * is_right)
        tested.index_add_(0, continuation.match_length, counted)
        self._right.add(right, tested, was_asked)


def _truth(token_ids: Tensor, num_known: Tensor, depth: int) -> tuple[Tensor, Tensor]:
    """The first `depth` of token_ids [S, R], and which of them are known, both [S, depth]."""
    truth = token_ids[:, :depth]
    truth = torch.nn.functional.pad(truth, (0, depth - truth.shape[1]))
    return truth, torch.arange(depth, device=truth.device) < num_known[:, None]
