"""Medians with their spread, written short. Pure."""

import statistics
from collections.abc import Sequence


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
