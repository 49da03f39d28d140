"""The results file: what one run wrote last lies between two markers, the rest is written by hand and stays."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from bench.measure import Turn
from bench.never_slower.report import Points

BEGIN, END = "<!-- latest run: begin -->", "<!-- latest run: end -->"
_TITLE = "# Results"


def replace_marked(text: str, section: str) -> str:
    """`text` with `section` between the markers; without markers it comes after the title, before all else."""
    marked = f"{BEGIN}\n\n{section.strip()}\n\n{END}"
    before, begin, rest = text.partition(BEGIN)
    if begin:
        _, end, after = rest.partition(END)
        if not end:
            raise ValueError(f"the results file has {BEGIN!r} but no {END!r}")
        return before + marked + after
    after = text.strip().removeprefix(_TITLE).strip()
    return "\n\n".join(part for part in (_TITLE, marked, after) if part) + "\n"


def write_section(path: Path, section: str) -> None:
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    path.write_text(replace_marked(text, section), encoding="utf-8")


def write_samples(path: Path, turns: Sequence[Turn], points: Points) -> None:
    """Every sample of every turn and every run of bench.never_slower as JSON, for other evaluations."""
    runs = [
        {"workload": workload, "concurrency": concurrency, "way": way, **asdict(taken)}
        for (workload, concurrency), point in points.items()
        for way, taken in point.items()
    ]
    everything = {"turns": [asdict(turn) for turn in turns], "never_slower": runs}
    path.write_text(json.dumps(everything), encoding="utf-8")
