"""Pictures: those that there are figures for, small."""

from pathlib import Path

from bench.never_slower.report import AUTO, OFF, Runs
from bench.plots import PlotData, draw
from tests.bench import turns


def test_pictures_of_a_run(tmp_path: Path) -> None:
    points = {("chat", n): {OFF: Runs([10.0, 10.0]), AUTO: Runs([12.0, 11.0])} for n in (1, 8)}
    data = PlotData([turns.turn(1, turns.OFF, 50)], {("ngram", 1): (10, 5), ("ngram", 2): (4, 1)}, points)
    links = draw(data, tmp_path / "plots")
    assert [link.rpartition("/")[2] for link in links] == ["speed_up.svg)", "acceptance.svg)", "limit.svg)"]
    assert all(file.stat().st_size < 40_000 for file in (tmp_path / "plots").iterdir())


def test_a_run_of_never_slower_has_its_one_picture(tmp_path: Path) -> None:
    points = {("chat", n): {OFF: Runs([10.0] * 6), AUTO: Runs([12.0] * 6)} for n in (1, 8)}
    (link,) = draw(PlotData(never_slower=points), tmp_path)
    assert "speed_up.svg" in link


def test_what_was_not_measured_is_not_drawn(tmp_path: Path) -> None:
    assert draw(PlotData(), tmp_path / "plots") == []
