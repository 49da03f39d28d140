"""What a step costs on this machine: measured by the shards at every start, corrected by the steps that follow.

Pure. Must not know what is decided with it.

    seconds(rows, context) = by_rows(rows) + per_context_token * context

`rows` are all rows of a decode or verification; `context` is the sum of the committed tokens of its sequences, whose
keys and values are read once for each sequence, however many rows it has.

A start beside a busy neighbour measures wrong, so steps are held against the table as they are taken. A machine that is
slower now is slower for all kinds of steps, which changes no decision: that is the pace, and follows quickly. What a
number of rows costs beside others is what is corrected, slowly, between the two measurements that it lies between.
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from router.proposal import Proposal

# The cost of a row is taken over so many: a product's tiles make single rows free or dear by turns.
_ROWS = 4
# Part of a step's difference that the pace takes over. The table takes a mean: the warm-up counts as so many steps, and
# more than so many are not remembered.
_PACE_RATE, _WARM_UP_STEPS, _MOST_STEPS = 1 / 8, 16.0, 256.0
# A step that took longer than so many times what was expected was held up: it counts no more than this.
_MOST = 1.5


@dataclass(frozen=True, slots=True)
class StepCost:
    """One measurement. `proposal`: who was asked for drafts in the step."""

    sequences: int
    rows: int
    context: int
    proposal: Proposal
    seconds: float


class StepCosts:
    """Without measurements everything costs nothing."""

    def __init__(self, measured: Iterable[StepCost] = ()) -> None:
        best: dict[tuple[int, int, int, Proposal], float] = {}
        for cost in measured:
            key = (cost.sequences, cost.rows, cost.context, cost.proposal)
            best[key] = min(cost.seconds, best.get(key, cost.seconds))
        plain = {key[:3]: seconds for key, seconds in best.items() if key[3] is Proposal.NONE}
        self.per_context_token = _context_slope(plain)
        self.by_rows = _rising(
            (rows, seconds - self.per_context_token * context) for (_, rows, context), seconds in plain.items()
        )
        self.by_proposal = {
            proposal: _rising(
                (sequences, max(0.0, seconds - plain[sequences, rows, context]))
                for (sequences, rows, context, asked), seconds in best.items()
                if asked is proposal and (sequences, rows, context) in plain
            )
            for proposal in (Proposal.LOOKUP, Proposal.HEADS)
        }
        self._pace = 1.0
        self._num_steps = [_WARM_UP_STEPS] * len(self.by_rows)

    @property
    def is_known(self) -> bool:
        return len(self.by_rows) > 1

    def seconds(self, rows: float, context: int) -> float:
        return _at(self.by_rows, rows) + self.per_context_token * context

    def row_seconds(self, rows: float) -> float:
        """Of one row more than `rows`."""
        return (_at(self.by_rows, rows + _ROWS) - _at(self.by_rows, rows)) / _ROWS

    def proposal_seconds(self, proposal: Proposal, sequences: int) -> float:
        """Of asking for drafts of so many sequences."""
        return _at(self.by_proposal.get(proposal, []), sequences) if sequences else 0.0

    def observe(self, rows: int, context: int, proposal: Proposal, num_asked: int, seconds: float) -> None:
        """A step of so many rows, in which drafts of `num_asked` sequences were asked for, took so long."""
        expected = self.seconds(rows, context) + self.proposal_seconds(proposal, num_asked)
        # Nothing is known of what to expect, or of what it took.
        if not self.is_known or expected <= 0 or seconds <= 0:
            return
        ratio = min(max(seconds / (expected * self._pace), 1 / _MOST), _MOST)
        self._pace *= 1 + _PACE_RATE * (ratio - 1)
        low, high, weight = _between(self.by_rows, rows)
        changes = {}
        for index, part in ((low, 1 - min(weight, 1.0)), (high, min(weight, 1.0))):
            if part:
                self._num_steps[index] = min(self._num_steps[index] + part, _MOST_STEPS)
                changes[index] = (ratio - 1) * part / self._num_steps[index]
        for index, (at, value) in enumerate(self.by_rows):
            if self._num_steps[index] == _WARM_UP_STEPS:
                # No step was like it yet: it goes half the way with its neighbour, lest it seem cheap or dear.
                change = max((one * 0.5 ** abs(index - seen) for seen, one in changes.items()), key=abs)
            else:
                change = changes.get(index, 0.0)
            self.by_rows[index] = at, value * (1 + change)
        self.by_rows = _rising(self.by_rows)


def _context_slope(plain: dict[tuple[int, int, int], float]) -> float:
    """From steps that differ in nothing but their context."""
    by_shape: dict[tuple[int, int], list[tuple[int, float]]] = defaultdict(list)
    for (sequences, rows, context), seconds in plain.items():
        by_shape[sequences, rows].append((context, seconds))
    pairs = [(min(points), max(points)) for points in by_shape.values() if len(points) > 1]
    tokens = sum(high[0] - low[0] for low, high in pairs)
    return max(0.0, sum(high[1] - low[1] for low, high in pairs) / tokens) if tokens else 0.0


def _rising(points: Iterable[tuple[int, float]]) -> list[tuple[int, float]]:
    """Sorted, the least of equals, and never falling: less work that took longer was disturbed."""
    best: dict[int, float] = {}
    for x, y in points:
        best[x] = min(y, best.get(x, y))
    rising: list[tuple[int, float]] = []
    least = float("inf")
    for x in sorted(best, reverse=True):
        least = min(least, best[x])
        rising.append((x, least))
    return rising[::-1]


def _at(points: list[tuple[int, float]], x: float) -> float:
    """Between the points linear, before the first as it is, behind the last as between the last two."""
    if not points:
        return 0.0
    low, high, weight = _between(points, x)
    return points[low][1] + (points[high][1] - points[low][1]) * weight


def _between(points: list[tuple[int, float]], x: float) -> tuple[int, int, float]:
    """The points to the left and right of x, and how far it is from one to the other; over 1 behind the last."""
    index = bisect_left(points, (x, 0.0))
    if index == 0 or len(points) == 1:
        return 0, 0, 0.0
    high = min(index, len(points) - 1)
    x0, x1 = points[high - 1][0], points[high][0]
    return high - 1, high, (x - x0) / (x1 - x0)
