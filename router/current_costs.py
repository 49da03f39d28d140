"""What steps cost just now: what was measured at the start, corrected by what they take since. The same machine is fast
in one minute and slow in the next, where others use its memory, and then drafts that were free are dear.

Pure. Must not know what is decided with it.

What asking for drafts takes is part of the reply to a step. What checking them takes is told by steps that follow one
another with the same sequences, where one has more drafts than the other: all else in a step, its context above all, is
the same in both.
"""

from dataclasses import dataclass

from router.proposal import Proposal
from router.step_costs import DraftCost, StepCosts

# Of what was seen so much is left after the next step: a memory of some hundred, a second or two.
_KEPT = 0.99
# How much the measurement counts beside that: as much as so many steps that differ by one, or that ask.
_PRIOR_OF_DRAFTS, _PRIOR_OF_ASKING = 32.0, 4.0
# How far a step may be from what was expected, as a part of it: a neighbour's burst is not the step's.
_MOST = 0.2


@dataclass(frozen=True, slots=True)
class TakenStep:
    """A step without prompts, and what it took. `asked` were asked for drafts of `num_asked` sequences, which took
    `proposing_s` beside its `seconds`."""

    num_sequences: int
    num_drafts: int
    context: int
    asked: Proposal
    num_asked: int
    seconds: float
    proposing_s: float = 0.0


class _Slope:
    """Seconds for each unit, by least squares, with nothing as what is believed at first."""

    __slots__ = ("_prior", "_products", "_squares")

    def __init__(self, prior: float) -> None:
        self._prior = prior
        self._products = self._squares = 0.0

    @property
    def value(self) -> float:
        return self._products / (self._squares + self._prior)

    def observe(self, units: int, unlike_s: float) -> None:
        """So many units took so much more than they are known to."""
        seconds = self.value * units + unlike_s
        self._products = self._products * _KEPT + units * seconds
        self._squares = self._squares * _KEPT + units * units


class _OfAlike:
    """Steps of about as many sequences: how much slower they are than measured, and what a draft, and asking, takes
    more than that."""

    __slots__ = ("asking", "draft", "pace")

    def __init__(self) -> None:
        self.pace = 1.0
        self.draft = _Slope(_PRIOR_OF_DRAFTS)
        self.asking = {proposal: _Slope(_PRIOR_OF_ASKING) for proposal in (Proposal.LOOKUP, Proposal.HEADS)}


class CurrentCosts:
    """As StepCosts, of steps of so many sequences, as they are now."""

    def __init__(self, measured: StepCosts) -> None:
        self._measured = measured
        self._found: dict[int, _OfAlike] = {}
        self._last: TakenStep | None = None

    def seconds(self, num_sequences: int, context: int) -> float:
        """Without drafts."""
        return self._of(num_sequences).pace * self._measured.seconds(num_sequences, context)

    def draft_seconds(self, num_sequences: int, drafts: float) -> float:
        """What so many drafts, one at least, add."""
        more_s = self._of(num_sequences).draft.value * max(1.0, drafts)
        return max(0.0, self._measured.draft_seconds(num_sequences, drafts) + more_s)

    def draft_costs(self, num_sequences: int) -> tuple[DraftCost, ...]:
        """Of the first, the second, … draft."""
        more_s = self._of(num_sequences).draft.value
        measured = self._measured.draft_costs(num_sequences)
        return tuple(DraftCost(cost.first, max(0.0, cost.seconds + more_s)) for cost in measured)

    def least_draft_seconds(self, num_sequences: int) -> float:
        """Of each draft, where as many are taken as make it least."""
        return max(0.0, self._measured.least_draft_seconds(num_sequences) + self._of(num_sequences).draft.value)

    def proposal_seconds(self, proposal: Proposal, num_sequences: int, num_asked: int) -> float:
        """Of asking for drafts of so many of them."""
        if not num_asked or (slope := self._of(num_sequences).asking.get(proposal)) is None:
            return 0.0
        return max(0.0, self._measured.proposal_seconds(proposal, num_asked) + slope.value)

    def observe(self, step: TakenStep | None) -> None:
        """The next step is over; None: it had prompts."""
        last, self._last = self._last, step
        if step is None or not (measured_s := self._measured_s(step)):
            return
        found, most_s = self._of(step.num_sequences), _MOST * measured_s

        def bounded(unlike_s: float) -> float:
            return max(-most_s, min(unlike_s, most_s))

        if step.num_asked:
            asking = self.proposal_seconds(step.asked, step.num_sequences, step.num_asked)
            found.asking[step.asked].observe(1, bounded(step.proposing_s - asking))
        more_s = self._more_s(step, found)
        found.pace += (1 - _KEPT) * bounded(more_s - (found.pace - 1) * measured_s) / measured_s
        if last is not None and last.num_sequences == step.num_sequences:
            more_drafts = step.num_drafts - last.num_drafts
            # While every step has as many drafts nothing tells what they cost: to forget it then, and believe the
            # machine slow instead, would have them cheap for good.
            if more_drafts or not step.num_drafts:
                found.draft.observe(more_drafts, bounded(more_s - self._more_s(last, found)))

    def _more_s(self, step: TakenStep, found: _OfAlike) -> float:
        """What the step took more than expected at the measured pace."""
        return step.seconds - found.draft.value * step.num_drafts - self._measured_s(step)

    def _measured_s(self, step: TakenStep) -> float:
        seconds = self._measured.seconds(step.num_sequences, step.context)
        if step.num_drafts:
            seconds += self._measured.draft_seconds(step.num_sequences, step.num_drafts)
        return seconds

    def _of(self, num_sequences: int) -> _OfAlike:
        size = num_sequences.bit_length()
        found = self._found.get(size)
        if found is None:
            found = self._found[size] = _OfAlike()
        return found
