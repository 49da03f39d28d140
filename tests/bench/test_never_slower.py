"""Tables of ratios of speculation on over off, and against fixed drafts."""

import pytest

from bench.never_slower.config import CONCURRENCY, parse_args
from bench.never_slower.report import (
    AUTO,
    OFF,
    Runs,
    fixed_name,
    fixed_report,
    is_settled,
    pairs_line,
    report,
    speed_ups,
)


def _runs(*speeds: float) -> Runs:
    return Runs(list(speeds), [1.25] * len(speeds))


_POINTS = {
    ("chat", 1): {OFF: _runs(*[10.0] * 6), AUTO: _runs(12.0, 12.1, 11.9, 12.0, 12.0, 12.0)},
    ("chat", 8): {OFF: _runs(*[10.0] * 6), AUTO: _runs(9.0, 9.1, 8.9, 9.0, 9.0, 9.0)},
    ("code", 1): {OFF: _runs(*[10.0] * 6), AUTO: _runs(9.0, 11.0, 10.0, 9.0, 11.0, 10.0)},
}


def test_speed_ups_are_of_pairs() -> None:
    found = speed_ups({("chat", 1): {OFF: _runs(10.0, 20.0), AUTO: _runs(11.0, 22.0)}})
    assert found["chat", 1].value == pytest.approx(1.1)


def test_report_names_what_is_not_kept() -> None:
    text = report(_POINTS, parse_args(["--pairs", "6"]))
    assert "1 kept, 1 not settled, 1 MISSED" in text
    assert "MISSED: chat at 8" in text
    assert "not settled: code at 1" in text
    assert "1.200" in text
    assert "1.25" in text


def test_every_pair_is_told_at_once() -> None:
    line = pairs_line(_POINTS, "code", 1)
    assert "code, 1 at once" in line
    assert line.endswith("pairs 0.900 1.100 1.000 0.900 1.100 1.000")


def test_a_point_is_settled_where_its_pairs_agree() -> None:
    agreeing, spread = _runs(*[10.1] * 8), _runs(*[9.0, 11.0] * 4)
    assert is_settled({OFF: _runs(*[10.0] * 8), AUTO: agreeing})
    assert not is_settled({OFF: _runs(*[10.0] * 8), AUTO: spread})
    assert not is_settled({OFF: _runs(*[10.0] * 6), AUTO: _runs(*[10.1] * 6)}), "six are too few for 99 %"


def test_gain_kept_is_against_the_best_fixed() -> None:
    points = {
        ("chat", 1): {
            OFF: _runs(*[10.0] * 6),
            AUTO: _runs(*[12.0] * 6),
            fixed_name(1): _runs(*[11.0] * 6),
            fixed_name(3): _runs(*[15.0] * 6),
        }
    }
    row = fixed_report(points).splitlines()[-1]
    assert "fixed 3" in row
    assert row.rstrip(" |").endswith("0.800 [0.800–0.800]")


def test_flags() -> None:
    config = parse_args(["--flags=--tree-size 4 --tree-width 2", "--concurrency", "1", "64", "--fixed", "1", "3"])
    assert config.server_flags == ["--max-batch-size=64", "--tree-size", "4", "--tree-width", "2"]
    assert config.fixed == (1, 3)
    assert config.num_new_tokens(1) > config.num_new_tokens(64)
    assert parse_args(["--new-tokens", "7"]).num_new_tokens(64) == 7
    assert parse_args([]).most_pairs == 24
    assert parse_args(["--pairs", "8", "--most-pairs", "16"]).most_pairs == 16
    assert parse_args(["--fixed", "1"]).most_pairs == 8
    assert parse_args([]).concurrency == CONCURRENCY
    assert parse_args(["--fixed", "1"]).concurrency == (1, 8)
    assert parse_args(["--fixed", "1", "--concurrency", "32"]).concurrency == (32,)
