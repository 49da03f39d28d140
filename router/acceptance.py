"""What proposals brought, by method and position: the evidence from which budgets are made.

Pure. Old evidence fades, so a sequence that begins to copy, or stops, is soon seen to.
"""

from collections.abc import Iterable, Sequence

from router.draft_counts import added_up, by_method, num_counts

# Of the evidence so much is left after the next proposal: a memory of some twenty of a sequence, of a thousand of all.
KEPT_OF_ONE = 0.95
KEPT_OF_ALL = 0.999
# Weight of what is believed of a sequence before its own evidence, in proposals.
_PRIOR_WEIGHT = 3.0
# Outcomes are counted in once they are such a part of the evidence: the first ones at once, later five of a sequence
# together and two hundred of all. Each time takes as long, and one changes little by then.
_NEWS = 0.2


class Acceptance:
    """Faded sums of some methods, and what follows from them. `prior` is what all sequences brought; None: this is that
    of all.

    gain: accepted drafts, and rows: checked drafts, per proposal. probabilities: that a draft of the best method is
    accepted, by depth from 1; where nobody knows it is worth a try.
    """

    __slots__ = (
        *("_kept", "_methods", "_new", "_num_new", "_prior", "_proposals", "_sums"),
        *("gain", "probabilities", "rows"),
    )

    def __init__(self, methods: Iterable[str], depth: int, prior: "Acceptance | None" = None) -> None:
        self._kept = KEPT_OF_ALL if prior is None else KEPT_OF_ONE
        self._prior = prior
        self._methods = frozenset(methods)
        self._proposals = 0.0
        # As in draft_counts, of all methods.
        self._sums = [0.0] * num_counts(depth)
        # Outcomes that are not counted in.
        self._new: list[Sequence[int]] = []
        self._num_new = 0
        self.gain: float = prior.gain if prior else 0.0
        self.rows: float = prior.rows if prior else 0.0
        self.probabilities: list[float] = list(prior.probabilities) if prior else [float(bool(self._methods))] * depth

    def observe(self, counts: Iterable[Sequence[int]], *, num_proposals: int = 1) -> bool:
        """Outcomes of proposals, those that had a draft to check with their counts (see draft_counts). Whether anything
        is believed now that was not before."""
        self._new += counts
        self._num_new += num_proposals
        if self._num_new < _NEWS * self._proposals:
            return False
        kept = self._kept**self._num_new
        self._proposals = self._proposals * kept + self._num_new
        self._sums = [value * kept for value in self._sums]
        if self._new:
            self._sums = [value + new for value, new in zip(self._sums, added_up(self._new), strict=True)]
        self._new, self._num_new = [], 0
        self._work_out()
        return True

    def _work_out(self) -> None:
        prior = self._prior
        of_methods = [(drafted, accepted) for m, drafted, accepted in by_method(self._sums) if m in self._methods]
        weight = self._proposals + (_PRIOR_WEIGHT if prior else 0.0)
        num_drafted = sum(sum(drafted) for drafted, _ in of_methods)
        num_accepted = sum(sum(accepted) for _, accepted in of_methods)
        self.gain = (num_accepted + (_PRIOR_WEIGHT * prior.gain if prior else 0.0)) / weight
        self.rows = (num_drafted + (_PRIOR_WEIGHT * prior.rows if prior else 0.0)) / weight
        believed = prior.probabilities if prior else [1.0] * len(self.probabilities)
        self.probabilities = [
            max(
                (
                    (accepted[i] + _PRIOR_WEIGHT * belief) / (drafted[i] + _PRIOR_WEIGHT)
                    for drafted, accepted in of_methods
                ),
                default=0.0,
            )
            for i, belief in enumerate(believed)
        ]
