"""How steps differ just now from what was measured at the start: the same machine is fast in one minute and slow in the
next, where others use its memory, and then drafts that were free are dear.

Pure. Must not know what is decided with it.

What drafts and asking for them cost is told by steps that follow one another with the same sequences, where one has
more drafts than the other, or asks and the other does not: all else in a step, its context above all, is the same in
both.
"""

from dataclasses import dataclass

from router.proposal import Proposal
from router.step_costs import StepCosts

# Of what was seen so much is left after the next step: a memory of some hundred, a second or two.
_KEPT = 0.99
# How much the measurement counts beside that: as much as so many steps that differ by one.
_PRIOR_OF_DRAFTS, _PRIOR_OF_ASKING = 32.0, 4.0
# What a step may teach, at most, as a part of its time: a neighbour's burst is not the step's.
_MOST = 0.5


@dataclass(frozen=True, slots=True)
class TakenStep:
    """A step without prompts, and what it took. `asked` were asked for drafts of `num_asked` sequences."""

    num_sequences: int
    num_drafts: int
    context: int
    asked: Proposal
    num_asked: int
    seconds: float

    def asks(self, proposal: Proposal) -> bool:
        return self.num_asked > 0 and self.asked is proposal


class _Slope:
    """Seconds for each unit by which steps differ, by least squares, with nothing as what is believed at first."""

    __slots__ = ("_prior", "_products", "_squares")

    def __init__(self, prior: float) -> None:
        self._prior = prior
        self._products = self._squares = 0.0

    @property
    def value(self) -> float:
        return self._products / (self._squares + self._prior)

    def observe(self, difference: int, seconds: float) -> None:
        self._products = self._products * _KEPT + difference * seconds
        self._squares = self._squares * _KEPT + difference * difference


class _OfAlike:
    """Of steps of about as many sequences."""

    __slots__ = ("asking", "draft", "pace")

    def __init__(self) -> None:
        self.pace = 1.0
        self.draft = _Slope(_PRIOR_OF_DRAFTS)
        self.asking = {proposal: _Slope(_PRIOR_OF_ASKING) for proposal in (Proposal.LOOKUP, Proposal.HEADS)}

    def more_s(self, step: TakenStep) -> float:
        """What the step is known to take more than was measured."""
        asking_s = sum(slope.value for proposal, slope in self.asking.items() if step.asks(proposal))
        return self.draft.value * step.num_drafts + asking_s


class Drift:
    def __init__(self, costs: StepCosts) -> None:
        self._costs = costs
        self._found: dict[int, _OfAlike] = {}
        self._last: TakenStep | None = None

    def pace(self, num_sequences: int) -> float:
        """Times of steps without drafts over what was measured."""
        return self._of(num_sequences).pace

    def draft_seconds(self, num_sequences: int) -> float:
        """What a draft takes more than was measured; less if below 0."""
        return self._of(num_sequences).draft.value

    def proposal_seconds(self, proposal: Proposal, num_sequences: int) -> float:
        """What asking takes more in a step of so many sequences, however many of them are asked."""
        slope = self._of(num_sequences).asking.get(proposal)
        return slope.value if slope else 0.0

    def observe(self, step: TakenStep | None) -> None:
        """The next step is over; None: it had prompts."""
        last, self._last = self._last, step
        if step is None or not (measured_s := self._measured_s(step)):
            return
        found = self._of(step.num_sequences)
        most_s = _MOST * measured_s
        unlike_s = step.seconds - found.more_s(step) - found.pace * measured_s
        found.pace += (1 - _KEPT) * max(-most_s, min(unlike_s, most_s)) / measured_s
        if last is None or last.num_sequences != step.num_sequences:
            return
        more_s = (step.seconds - measured_s) - (last.seconds - self._measured_s(last))
        more_s = max(-most_s, min(more_s, most_s)) - found.more_s(step) + found.more_s(last)
        # Each learns from what the others do not explain.
        differences = [(found.draft, step.num_drafts - last.num_drafts)]
        differences += [(slope, step.asks(asked) - last.asks(asked)) for asked, slope in found.asking.items()]
        for slope, difference in differences:
            slope.observe(difference, more_s + slope.value * difference)

    def _measured_s(self, step: TakenStep) -> float:
        seconds = self._costs.seconds(step.num_sequences, step.context)
        if step.num_drafts:
            seconds += self._costs.draft_seconds(step.num_sequences, step.num_drafts)
        return seconds + self._costs.proposal_seconds(step.asked, step.num_asked)

    def _of(self, num_sequences: int) -> _OfAlike:
        return self._found.setdefault(num_sequences.bit_length(), _OfAlike())
