"""From speeds to ratios with their confidence, and what they say of "never slower". Pure."""

from bench.never_slower.config import NeverSlowerConfig
from bench.statistic import MeanRatio, mean_ratio, table, verdict

OFF, AUTO = "off", "auto"
# Speculation may cost two percent: less cannot be told from noise in a run of minutes.
LEAST = 0.98

# Tokens per second of each run by way, by workload and concurrency; the n-th of each way were taken in turns.
Points = dict[tuple[str, int], dict[str, list[float]]]


def fixed_name(k: int) -> str:
    return f"fixed {k}"


def ratios(point: dict[str, list[float]], way: str, base: str) -> list[float]:
    return [ours / theirs for ours, theirs in zip(point[way], point[base], strict=True)]


def speed_ups(points: Points) -> dict[tuple[str, int], MeanRatio]:
    """Speculation on over off."""
    return {key: mean_ratio(ratios(point, AUTO, OFF)) for key, point in points.items()}


def report(points: Points, config: NeverSlowerConfig) -> str:
    """Markdown: a row per kind of text, a column per concurrency, then the verdict of each point that is not kept."""
    found = speed_ups(points)
    workloads = list(dict.fromkeys(workload for workload, _ in found))
    columns = sorted({concurrency for _, concurrency in found})
    rows = [
        [workload, "", *(str(found[workload, n]) if (workload, n) in found else "–" for n in columns)]
        for workload in workloads
    ]
    drafts = "the server's default" if config.speculate is None else f"--speculate {config.speculate}"
    return "\n\n".join(
        [
            "### Never slower",
            f"Throughput with speculation over without, through the server, {drafts}"
            f"{''.join(f' {flag}' for flag in config.flags)}: mean of {config.pairs} pairs [95 % confidence].",
            table(["workload", "at once:", *map(str, columns)], rows),
            _verdict_lines(found),
        ]
    )


def _verdict_lines(found: dict[tuple[str, int], MeanRatio]) -> str:
    said = {key: verdict(ratio, LEAST) for key, ratio in found.items()}
    counts = {word: sum(one == word for one in said.values()) for word in ("kept", "not settled", "MISSED")}
    lines = [f"At least {LEAST}: " + ", ".join(f"{number} {word}" for word, number in counts.items())]
    for word in ("MISSED", "not settled"):
        points = [f"{workload} at {n}" for (workload, n), one in said.items() if one == word]
        if points:
            lines.append(f"{word}: {', '.join(points)}")
    everything = mean_ratio([ratio.mean for ratio in found.values()])
    lines.append(f"all points together: {everything}")
    return "\n".join(f"- {line}" for line in lines)


def fixed_report(points: Points) -> str:
    """How much of the best fixed number's gain the server's own choice keeps. The best is chosen after the fact."""
    rows = []
    for (workload, concurrency), point in points.items():
        fixed = {way: mean_ratio(ratios(point, way, OFF)).mean for way in point if way not in (OFF, AUTO)}
        best = max(fixed, key=lambda way: fixed[way])
        rows.append(
            [
                f"{concurrency} {workload}",
                best,
                str(mean_ratio(ratios(point, AUTO, OFF))),
                *(f"{fixed[way]:.3f}" for way in fixed),
                str(mean_ratio(ratios(point, AUTO, best))),
            ]
        )
    names = [way for way in next(iter(points.values())) if way not in (OFF, AUTO)]
    header = ["at once, workload", "best fixed", "auto / off", *(f"{name} / off" for name in names), "gain kept"]
    return "### The server's choice against fixed drafts\n\n" + table(header, rows)
