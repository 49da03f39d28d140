"""From speeds to ratios with their confidence, and what they say of "never slower". Pure."""

import statistics
from dataclasses import dataclass, field

from bench.never_slower.config import NeverSlowerConfig
from bench.statistic import KEPT, MISSED, NOT_SETTLED, Ratio, table, typical_ratio, verdict

OFF, AUTO = "off", "auto"
# Speculation may cost two percent: less cannot be told from noise in a run of minutes.
LEAST = 0.98
# Surer than the report, because it is asked for several times.
_SETTLED_CONFIDENCE = 0.99


@dataclass(frozen=True, slots=True)
class Runs:
    """Of one way, one value a run: tokens per second of all requests, drafts checked per step of one."""

    speeds: list[float] = field(default_factory=list)
    drafts_per_step: list[float] = field(default_factory=list)


# By workload and concurrency, then by way; the n-th runs of all ways were taken in turns.
Points = dict[tuple[str, int], dict[str, Runs]]


def fixed_name(k: int) -> str:
    return f"fixed {k}"


def ratios(point: dict[str, Runs], way: str, base: str) -> list[float]:
    return [ours / theirs for ours, theirs in zip(point[way].speeds, point[base].speeds, strict=True)]


def speed_ups(points: Points) -> dict[tuple[str, int], Ratio]:
    """Speculation on over off."""
    return {key: typical_ratio(ratios(point, AUTO, OFF)) for key, point in points.items()}


def is_settled(point: dict[str, Runs]) -> bool:
    """Whether more pairs would hardly change the verdict."""
    return verdict(typical_ratio(ratios(point, AUTO, OFF), confidence=_SETTLED_CONFIDENCE), LEAST) != NOT_SETTLED


def pairs_line(points: Points, workload: str, concurrency: int) -> str:
    """Of one point, when it is measured: every pair, for whoever asks later how they spread."""
    found = ratios(points[workload, concurrency], AUTO, OFF)
    pairs = " ".join(f"{ratio:.3f}" for ratio in found)
    return f"never slower: {workload}, {concurrency} at once: {typical_ratio(found)}, pairs {pairs}"


def report(points: Points, config: NeverSlowerConfig) -> str:
    """Markdown: a row per kind of text, a column per concurrency; then the drafts per step, which tell a point where
    some were checked from one where on and off ran the same rows; then the verdict of each point that is not kept."""
    found = speed_ups(points)
    drafts_per_step = {key: f"{statistics.fmean(point[AUTO].drafts_per_step):.2f}" for key, point in points.items()}
    drafts = "the server's default" if config.speculate is None else f"--speculate {config.speculate}"
    return "\n\n".join(
        [
            "### Never slower",
            f"Throughput with speculation over without, through the server, {drafts}"
            f"{''.join(f' {flag}' for flag in config.flags)}: {config.pairs} pairs, up to {config.most_pairs} where "
            "they do not settle it [95 % confidence].",
            _by_concurrency({key: str(ratio) for key, ratio in found.items()}),
            "Drafts checked per step of a request; at 0.00 the two ways ran the same rows.",
            _by_concurrency(drafts_per_step),
            _verdict_lines(found),
        ]
    )


def _by_concurrency(cells: dict[tuple[str, int], str]) -> str:
    columns = sorted({concurrency for _, concurrency in cells})
    rows = [
        [workload, "", *(cells.get((workload, n), "–") for n in columns)]
        for workload in dict.fromkeys(workload for workload, _ in cells)
    ]
    return table(["workload", "at once:", *map(str, columns)], rows)


def _verdict_lines(found: dict[tuple[str, int], Ratio]) -> str:
    said = {key: verdict(ratio, LEAST) for key, ratio in found.items()}
    counts = {word: sum(one == word for one in said.values()) for word in (KEPT, NOT_SETTLED, MISSED)}
    lines = [f"At least {LEAST}: " + ", ".join(f"{number} {word}" for word, number in counts.items())]
    for word in (MISSED, NOT_SETTLED):
        points = [f"{workload} at {n}" for (workload, n), one in said.items() if one == word]
        if points:
            lines.append(f"{word}: {', '.join(points)}")
    everything = typical_ratio([ratio.value for ratio in found.values()])
    lines.append(f"all points together: {everything}")
    return "\n".join(f"- {line}" for line in lines)


def fixed_report(points: Points) -> str:
    """How much of the best fixed number's gain the server's own choice keeps. The best is chosen after the fact."""
    rows = []
    for (workload, concurrency), point in points.items():
        fixed = {way: typical_ratio(ratios(point, way, OFF)).value for way in point if way not in (OFF, AUTO)}
        best = max(fixed, key=lambda way: fixed[way])
        rows.append(
            [
                f"{concurrency} {workload}",
                best,
                str(typical_ratio(ratios(point, AUTO, OFF))),
                *(f"{fixed[way]:.3f}" for way in fixed),
                str(typical_ratio(ratios(point, AUTO, best))),
            ]
        )
    names = [way for way in next(iter(points.values())) if way not in (OFF, AUTO)]
    header = ["at once, workload", "best fixed", "auto / off", *(f"{name} / off" for name in names), "gain kept"]
    return "### The server's choice against fixed drafts\n\n" + table(header, rows)
