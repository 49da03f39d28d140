"""What proposals brought, by method and position: the evidence from which budgets are made.

Pure. Old evidence fades, so a sequence that begins to copy, or stops, is soon seen to.
"""

from collections.abc import Iterable

from router.plan import DraftCounts

# Of the evidence so much is left after the next proposal: a memory of some twenty of a sequence, of a thousand of all.
KEPT_OF_ONE = 0.95
KEPT_OF_ALL = 0.999
# Weight of what is believed of a sequence before its own evidence, in proposals.
_PRIOR_WEIGHT = 3.0


class Acceptance:
    """Faded sums of some methods, and what follows from them. `prior` is what all sequences brought; None: this is that
    of all.

    gain: accepted drafts, and rows: checked drafts, per proposal. probabilities: that a draft of the best method is
    accepted, by depth from 1; where nobody knows it is worth a try.
    """

    __slots__ = ("_accepted", "_drafted", "_kept", "_prior", "_proposals", "gain", "probabilities", "rows")

    def __init__(self, methods: Iterable[str], depth: int, prior: "Acceptance | None" = None) -> None:
        self._kept = KEPT_OF_ALL if prior is None else KEPT_OF_ONE
        self._prior = prior
        self._proposals = 0.0
        self._drafted = {method: [0.0] * depth for method in methods}
        self._accepted = {method: [0.0] * depth for method in methods}
        self.gain: float = prior.gain if prior else 0.0
        self.rows: float = prior.rows if prior else 0.0
        self.probabilities: list[float] = list(prior.probabilities) if prior else [float(bool(self._drafted))] * depth

    def observe(self, counts: Iterable[DraftCounts], *, num_proposals: int = 1) -> None:
        """Outcomes of proposals; a method that had no draft to check has no counts, others' are passed over."""
        kept = self._kept**num_proposals
        self._proposals = self._proposals * kept + num_proposals
        for sums in (*self._drafted.values(), *self._accepted.values()):
            sums[:] = [value * kept for value in sums]
        for one in counts:
            if (drafted := self._drafted.get(one.method)) is not None:
                accepted = self._accepted[one.method]
                for i, (new_drafted, new_accepted) in enumerate(zip(one.drafted, one.accepted, strict=True)):
                    drafted[i] += new_drafted
                    accepted[i] += new_accepted
        self._work_out()

    def _work_out(self) -> None:
        prior = self._prior
        weight = self._proposals + (_PRIOR_WEIGHT if prior else 0.0)
        self.gain = (sum(map(sum, self._accepted.values())) + (_PRIOR_WEIGHT * prior.gain if prior else 0.0)) / weight
        self.rows = (sum(map(sum, self._drafted.values())) + (_PRIOR_WEIGHT * prior.rows if prior else 0.0)) / weight
        believed = prior.probabilities if prior else [1.0] * len(self.probabilities)
        self.probabilities = [
            max(
                (accepted[i] + _PRIOR_WEIGHT * believed[i]) / (drafted[i] + _PRIOR_WEIGHT)
                for drafted, accepted in zip(self._drafted.values(), self._accepted.values(), strict=True)
            )
            if self._drafted
            else 0.0
            for i in range(len(believed))
        ]
