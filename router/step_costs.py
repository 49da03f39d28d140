"""What a step costs on this machine: measured by the shards at every start, read between the measurements.

Pure. Must not know what is decided with it.

    seconds(rows, context) = by_rows(rows) + per_context_token * context, and `checking` where drafts are among the rows

`context` is the sum of the committed tokens of a step's sequences, whose keys and values are read once for each
sequence, however many rows it has.
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

from router.proposal import Proposal

# The measurements go on like their last two up to this number of rows, which no step has.
_MANY = 1 << 20


@dataclass(frozen=True, slots=True)
class DraftCost:
    """What each draft of a step adds to it, from number `first` (0, 1, …) on."""

    first: int
    seconds: float


@dataclass(frozen=True, slots=True)
class StepCost:
    """One measurement. `proposal`: who was asked for drafts in the step, which took `proposing_s` beside its
    `seconds`."""

    sequences: int
    rows: int
    context: int
    proposal: Proposal
    seconds: float
    proposing_s: float = 0.0


class StepCosts:
    """Without measurements everything costs nothing."""

    def __init__(self, measured: Iterable[StepCost] = ()) -> None:
        measured = list(measured)
        plain: dict[tuple[int, int, int], float] = {}
        for cost in measured:
            key = (cost.sequences, cost.rows, cost.context)
            plain[key] = min(cost.seconds, plain.get(key, cost.seconds))
        self.per_context_token = _context_slope(plain)
        alone = {
            (sequences, rows): seconds - self.per_context_token * context
            for (sequences, rows, context), seconds in plain.items()
        }
        self.by_rows = _rising((rows, seconds) for (sequences, rows), seconds in alone.items() if rows == sequences)
        # The same number of rows without drafts and with them; more rows than that are measured with drafts only.
        most = self.by_rows[-1][0] if self.by_rows else 0
        checked = [(rows, seconds) for (sequences, rows), seconds in alone.items() if rows > sequences]
        differences = [seconds - _at(self.by_rows, rows) for rows, seconds in checked if rows <= most]
        self.checking = max(0.0, median(differences)) if differences else 0.0
        many = [(rows, seconds - self.checking) for rows, seconds in checked if rows > most]
        self.by_rows = _rising([*self.by_rows, *many])
        # By rows, each when it is asked for first.
        self._draft_costs: dict[int, tuple[DraftCost, ...]] = {}
        self._least_draft_seconds: dict[int, float] = {}
        self.by_proposal = {
            proposal: _rising((cost.sequences, cost.proposing_s) for cost in measured if cost.proposal is proposal)
            for proposal in (Proposal.LOOKUP, Proposal.HEADS)
        }

    @property
    def is_known(self) -> bool:
        return len(self.by_rows) > 1

    def seconds(self, rows: float, context: int) -> float:
        """Without drafts."""
        return _at(self.by_rows, rows) + self.per_context_token * context

    def draft_seconds(self, rows: int, drafts: float) -> float:
        """What so many drafts, one at least, add to a step of `rows` rows."""
        return self.checking + _at(self.by_rows, rows + max(1.0, drafts)) - _at(self.by_rows, rows)

    def draft_costs(self, rows: int) -> tuple[DraftCost, ...]:
        """Of the first, the second, … draft of a step of `rows` rows."""
        if rows not in self._draft_costs:
            corners = [0, 1, *(x - rows for x, _ in self.by_rows if x > rows + 1), _MANY]
            totals = [0.0, *(self.draft_seconds(rows, corner) for corner in corners[1:])]
            self._draft_costs[rows] = tuple(
                DraftCost(first, (after - before) / (end - first))
                for (first, end), (before, after) in zip(pairwise(corners), pairwise(totals), strict=True)
            )
        return self._draft_costs[rows]

    def least_draft_seconds(self, rows: int) -> float:
        """Of each draft, where as many are taken as make it least: where some stretch of equal costs ends."""
        if rows not in self._least_draft_seconds:
            *_, last = costs = self.draft_costs(rows)
            ends = (self.draft_seconds(rows, cost.first) / cost.first for cost in costs[1:])
            self._least_draft_seconds[rows] = min(last.seconds, *ends)
        return self._least_draft_seconds[rows]

    def proposal_seconds(self, proposal: Proposal, sequences: int) -> float:
        """Of asking for drafts of so many sequences."""
        return _at(self.by_proposal.get(proposal, []), sequences) if sequences else 0.0


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
    index = bisect_left(points, (x, 0.0))
    if index == 0 or len(points) == 1:
        return points[0][1]
    (x0, y0), (x1, y1) = points[min(index, len(points) - 1) - 1], points[min(index, len(points) - 1)]
    return y0 + (y1 - y0) * (x - x0) / (x1 - x0)
