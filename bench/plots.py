"""Pictures of a run as small SVG files. Needs matplotlib (`pip install '.[bench]'`); without it there are none."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.comparison import limit_shares
from bench.measure import Turn
from bench.metrics import Drafts
from bench.never_slower.report import LEAST, Points, speed_ups
from bench.prompts import WORKLOADS
from bench.say import say

# Text stays text instead of outlines, and the same figures give the same file.
SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "drafthouse",
    "font.family": "sans-serif",
    "font.size": 9,
}


@dataclass(frozen=True, slots=True)
class PlotData:
    """What is drawn; a picture whose part is empty is left out."""

    turns: Sequence[Turn] = ()
    drafts: Drafts = field(default_factory=dict)
    never_slower: Points = field(default_factory=dict)


def draw(data: PlotData, folder: Path) -> list[str]:
    """Writes the pictures that there are figures for. Returns links to them for a page beside `folder`."""
    try:
        import matplotlib
        from matplotlib import pyplot
    except ImportError:
        say("no plots: matplotlib is not installed (pip install '.[bench]')")
        return []
    matplotlib.use("svg")
    folder.mkdir(parents=True, exist_ok=True)
    pictures: list[tuple[str, str, Callable[[Any, PlotData], bool]]] = [
        ("speed_up", "Speculation on over off, by requests at once", _speed_up),
        ("acceptance", "Accepted share of the drafts, by how far ahead", _acceptance),
        ("limit", "Decoding speed of one sequence over the bandwidth limit", _limit),
    ]
    links = []
    with pyplot.rc_context(SETTINGS):
        for name, title, draw_one in pictures:
            figure, axes = pyplot.subplots(figsize=(6.4, 3.6))
            if draw_one(axes, data):
                axes.set_title(title, fontsize=10)
                axes.grid(alpha=0.3)
                figure.tight_layout()
                figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
                links.append(f"![{title}]({folder.name}/{name}.svg)")
            pyplot.close(figure)
    return links


def _speed_up(axes: Any, data: PlotData) -> bool:
    found = speed_ups(data.never_slower)
    for workload in dict.fromkeys(workload for workload, _ in found):
        points = sorted((n, ratio) for (name, n), ratio in found.items() if name == workload)
        axes.plot([n for n, _ in points], [ratio.value for _, ratio in points], marker="o", label=workload)
        axes.fill_between([n for n, _ in points], [r.low for _, r in points], [r.high for _, r in points], alpha=0.15)
    if found:
        ticks = sorted({n for _, n in found})
        axes.set_xscale("log", base=2)
        axes.set_xticks(ticks, [str(n) for n in ticks])
        axes.axhline(LEAST, color="black", linewidth=0.8, linestyle="--")
        axes.set_xlabel("requests at once")
        axes.set_ylabel("throughput, off = 1")
        axes.legend()
    return bool(found)


def _acceptance(axes: Any, data: PlotData) -> bool:
    for method in dict.fromkeys(method for method, _ in data.drafts):
        points = [(n, accepted / drafted) for (m, n), (drafted, accepted) in data.drafts.items() if m == method]
        axes.plot([n for n, _ in points], [share for _, share in points], marker="o", label=method)
    if data.drafts:
        axes.set_xticks(sorted({position for _, position in data.drafts}))
        axes.set_xlabel("tokens ahead")
        axes.set_ylabel("accepted of drafted")
        axes.set_ylim(0, 1)
        axes.legend()
    return bool(data.drafts)


def _limit(axes: Any, data: PlotData) -> bool:
    shares = limit_shares(data.turns)
    width = 0.8 / len(WORKLOADS)
    for i, workload in enumerate(WORKLOADS):
        offsets = [k + (i - 1) * width for k in range(len(shares))]
        axes.bar(offsets, [by.get(workload, 0.0) for by in shares.values()], width, label=workload)
    axes.set_xticks(range(len(shares)), list(shares))
    axes.set_ylabel("of the limit")
    axes.set_ylim(0, 1)
    axes.legend()
    return bool(shares)
