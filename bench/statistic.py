"""Medians with their spread, mean ratios with their confidence, tables; written short. Pure."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

# Two-sided 95 % points of Student's t by degrees of freedom, from 1; beyond them the normal distribution's serves.
_T_95: tuple[float, ...] = (
    12.706,
    4.303,
    3.182,
    2.776,
    2.571,
    2.447,
    2.365,
    2.306,
    2.262,
    2.228,
    2.201,
    2.179,
    2.160,
    2.145,
    2.131,
)
_T_95 += (2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042)
_NORMAL_95 = 1.960


@dataclass(frozen=True, slots=True)
class MeanRatio:
    """Geometric mean of ratios and the bounds of its 95 % confidence interval; of one ratio the bounds are open."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        bounds = f"{self.low:.3f}–{self.high:.3f}" if math.isfinite(self.high) else "one value"
        return f"{self.mean:.3f} [{bounds}]"


def mean_ratio(ratios: Sequence[float]) -> MeanRatio:
    """By Student's t on the logarithms: ratios of times spread evenly there, and on/off and off/on agree."""
    logs = [math.log(ratio) for ratio in ratios]
    mean = statistics.fmean(logs)
    if len(logs) < 2:
        return MeanRatio(math.exp(mean), 0.0, math.inf)
    freedom = len(logs) - 1
    factor = _T_95[freedom - 1] if freedom <= len(_T_95) else _NORMAL_95
    half = factor * statistics.stdev(logs) / math.sqrt(len(logs))
    return MeanRatio(math.exp(mean), math.exp(mean - half), math.exp(mean + half))


def verdict(ratio: MeanRatio, least: float) -> str:
    """What the interval says of "at least `least`": kept or missed where all of it lies on one side."""
    if ratio.low >= least:
        return "kept"
    return "MISSED" if ratio.high < least else "not settled"


def median(values: Sequence[float], *, scale: float = 1.0, digits: int = 1) -> str:
    return f"{statistics.median(values) * scale:.{digits}f}" if values else "–"


def spread(values: Sequence[float], *, digits: int = 2) -> str:
    """Median [first to third quartile]; the quartiles only where there are enough values for them."""
    if len(values) < 4:
        return median(values, digits=digits)
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{middle:.{digits}f} [{low:.{digits}f}–{high:.{digits}f}]"


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
