"""The part of the results file that a run writes, and the parts it must leave alone."""

import json
from pathlib import Path

import pytest

from bench.never_slower.report import Runs
from bench.results_file import BEGIN, END, replace_marked, write_samples, write_section
from tests.bench.turns import OFF, turn


def test_words_of_a_file_without_markers_stay_below_the_first_run() -> None:
    text = replace_marked("# Results\n\nOld words.\n", "## New")
    assert text == f"# Results\n\n{BEGIN}\n\n## New\n\n{END}\n\nOld words.\n"


def test_the_next_run_replaces_only_the_last() -> None:
    text = replace_marked(replace_marked("# Results\n\nOld words.\n", "## One"), "## Two\n")
    assert text == f"# Results\n\n{BEGIN}\n\n## Two\n\n{END}\n\nOld words.\n"


def test_words_above_the_markers_stay_there() -> None:
    text = f"# Results\n\nContents.\n\n## 1. Peers\n\n{BEGIN}\n\n## One\n\n{END}\n\nOld words.\n"
    assert replace_marked(text, "## Two") == text.replace("## One", "## Two")


def test_an_empty_file_gets_a_title() -> None:
    assert replace_marked("", "## New") == f"# Results\n\n{BEGIN}\n\n## New\n\n{END}\n"


def test_a_lost_end_marker_is_not_guessed() -> None:
    with pytest.raises(ValueError, match="latest run: end"):
        replace_marked(f"# Results\n{BEGIN}\nold words?", "## New")


def test_files(tmp_path: Path) -> None:
    write_section(tmp_path / "RESULTS.md", "## New")
    assert "## New" in (tmp_path / "RESULTS.md").read_text()
    write_samples(tmp_path / "samples.json", [turn(1, OFF, 10)], {("chat", 8): {"off": Runs([40.0], [0.0])}})
    found = json.loads((tmp_path / "samples.json").read_text())
    (taken,), (run,) = found["turns"], found["never_slower"]
    assert taken["system"]["name"] == "drafthouse"
    assert taken["samples"][0]["arrivals"][0] == {"time_s": 0.1, "num_tokens": 1}
    assert run == {"workload": "chat", "concurrency": 8, "way": "off", "speeds": [40.0], "drafts_per_step": [0.0]}
