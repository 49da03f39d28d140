"""Ratios within turns, the choice of the best peer, and the verdicts."""

import pytest

from bench.comparison import compare, comparison_table, limit_shares, verdict_of, verdicts
from bench.prompts import WORKLOADS
from tests.bench.turns import LOOKUP, OFF, ON, PEER, turn


def test_ratios_are_of_the_same_place() -> None:
    turns = [turn(1, OFF, 20), turn(1, PEER, 10), turn(2, OFF, 40), turn(2, PEER, 10), turn(3, OFF, 40)]
    (found,) = compare(turns)
    assert found.speed == pytest.approx((2.0, 4.0))


def test_each_of_ours_has_its_rivals() -> None:
    turns = [turn(1, OFF, 20), turn(1, ON, 40), turn(1, PEER, 10), turn(1, LOOKUP, 16)]
    by_ours = {c.ours: c for c in compare(turns)}
    assert by_ours[OFF].best == PEER
    assert by_ours[ON].best == LOOKUP
    assert by_ours[ON].speed == pytest.approx((2.5,))


@pytest.mark.parametrize(
    ("speed", "first_s", "said"),
    [
        (9, 0.1, "BEHIND"),
        (12, 0.1, "ahead, 1.5 not met"),
        (20, 0.1, "ahead, 1.5 met"),
        (20, 0.2, "ahead, 1.5 met, first token LATER"),
    ],
)
def test_verdict(speed: float, first_s: float, said: str) -> None:
    turns = [turn(1, ON, speed, batch=8, first_s=first_s), turn(1, PEER, 10, batch=8)]
    (found,) = compare(turns)
    assert verdict_of(found) == said
    assert said in comparison_table([found])


def test_share_of_the_limit_is_of_decoding() -> None:
    # 70 tokens/s after the first where the memory allows 100, as fast beside a neighbour that takes half of it.
    turns = [
        turn(n, OFF, 10 / (0.1 + 9 / speed), limit=limit)
        for n, (speed, limit) in enumerate([(70, 100), (35, 50), (9, 90)])
    ]
    turns.append(turn(1, ON, 90))
    assert limit_shares(turns) == {"drafthouse": {"chat": pytest.approx(0.7)}}


def test_verdict_lines() -> None:
    turns = [
        made
        for workload in WORKLOADS
        for made in (
            turn(1, OFF, 50, workload=workload),
            turn(1, ON, 50, workload=workload),
            turn(1, PEER, 20, workload=workload),
            turn(2, ON, 30, batch=8, workload=workload),
            turn(2, PEER, 40, batch=8, first_s=0.05, workload=workload),
        )
    ]
    lines = verdicts(turns).splitlines()
    assert "**yes** (chat 0.90; copy 0.90; code 0.90)" in lines[0]
    assert "**yes** (chat 2.50 × peer; " in lines[1]
    assert "8 at once are ahead of the best peer: **NO**" in lines[2]
    assert "8 at once: first token no later than the best peer's: **NO**" in lines[3]


def test_a_promise_is_not_kept_by_what_was_not_measured() -> None:
    lines = verdicts([turn(1, OFF, 50), turn(1, ON, 50), turn(1, PEER, 20)]).splitlines()
    assert "**not shown: copy, code not measured** (chat 2.50 × peer)" in lines[1]


def test_without_peers_nothing_is_claimed() -> None:
    assert "**not measured**" in verdicts([turn(1, OFF, 50), turn(1, ON, 50)])
