"""Medians with their spread, ratios with their confidence, tables; written short. Pure."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

KEPT, MISSED, NOT_SETTLED = "kept", "MISSED", "not settled"


@dataclass(frozen=True, slots=True)
class Ratio:
    """What ratios of pairs amount to, and the bounds of its confidence interval; open where pairs are too few."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        bounds = f"{self.low:.3f}–{self.high:.3f}" if math.isfinite(self.high) else "too few pairs"
        return f"{self.value:.3f} [{bounds}]"


def typical_ratio(ratios: Sequence[float], *, confidence: float = 0.95) -> Ratio:
    """By Hodges and Lehmann (1963), on the logarithms, where on/off and off/on agree: the median of the means of all
    pairs of values, with the bounds that Wilcoxon's signed ranks give. Needs no normal errors: a neighbour's burst in
    one of twenty pairs moves a mean, and widens its interval, but hardly this.

    `confidence`: the least share of cases in which the interval holds the true value; six values have bounds at .95,
    eight at .99.
    """
    logs = [math.log(ratio) for ratio in ratios]
    means = sorted((a + b) / 2 for i, a in enumerate(logs) for b in logs[i:])
    value = math.exp(statistics.median(means))
    cut = _signed_rank_cut(len(logs), confidence)
    if cut is None:
        return Ratio(value, 0.0, math.inf)
    return Ratio(value, math.exp(means[cut]), math.exp(means[-1 - cut]))


def _signed_rank_cut(num: int, confidence: float) -> int | None:
    """How many of the sorted means lie outside the interval at each end; None: all of them are too few."""
    # ways[s]: subsets of the ranks 1 to num that add up to s, each as likely as any other.
    ways = [1]
    for rank in range(1, num + 1):
        ways = [a + b for a, b in zip(ways + [0] * rank, [0] * rank + ways, strict=True)]
    most, below = (1 - confidence) / 2 * 2**num, 0
    for cut, number in enumerate(ways):
        below += number
        if below > most:
            return cut - 1 if cut else None
    return None


def verdict(ratio: Ratio, least: float) -> str:
    """What the interval says of "at least `least`": kept or missed where all of it lies on one side."""
    if ratio.low >= least:
        return KEPT
    return MISSED if ratio.high < least else NOT_SETTLED


def median(values: Sequence[float], *, scale: float = 1.0, digits: int = 1) -> str:
    return f"{statistics.median(values) * scale:.{digits}f}" if values else "–"


def spread(values: Sequence[float]) -> str:
    """Median [first to third quartile]; the quartiles only where there are enough values for them."""
    if len(values) < 4:
        return median(values, digits=2)
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{middle:.2f} [{low:.2f}–{high:.2f}]"


def percentile(values: Sequence[float], percent: int) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1] if len(values) > 1 else values[0]


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown that is aligned in a terminal too: the first two columns to the left, figures to the right."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        padded = [
            cell.ljust(width) if i < 2 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return f"| {' | '.join(padded)} |"

    rule = [":" + "-" * (width - 1) if i < 2 else "-" * (width - 1) + ":" for i, width in enumerate(widths)]
    return "\n".join([line(header), line(rule), *map(line, rows)])
