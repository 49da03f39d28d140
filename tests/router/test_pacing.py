"""How long the next plan is put off, by a clock that the tests hold."""

import pytest

from router.pacing import Pacer
from router.plan import SequenceStep, StepPlan


def _prompt(step_id: int, num_rows: int) -> StepPlan:
    return StepPlan(step_id, [], [], [SequenceStep(0, [], chunk_length=num_rows)])


def _decode(step_id: int) -> StepPlan:
    return StepPlan(step_id, [], [], [SequenceStep(0, [])])


def _taught(row_s: float = 0.002) -> Pacer:
    """Knows what a row of a prompt takes; a step has room for 256."""
    pacer = Pacer(256)
    pacer.note_sent(_prompt(1, 100), 0.0)
    assert pacer.wait_s(0.0) == 0.0, "nothing is known yet"
    pacer.note_result(100 * row_s, 0.2)
    return pacer


def test_most_of_a_step_with_prompts_is_let_pass() -> None:
    pacer = _taught()
    pacer.note_sent(_prompt(2, 200), 1.0)
    assert pacer.wait_s(1.0) == pytest.approx(0.28)
    assert pacer.wait_s(1.2) == pytest.approx(0.08)
    assert pacer.wait_s(1.3) == 0.0


def test_the_reply_ends_the_wait() -> None:
    pacer = _taught()
    pacer.note_sent(_prompt(2, 200), 1.0)
    pacer.note_result(0.1, 1.1)
    assert pacer.wait_s(1.1) == 0.0


def test_nothing_waits_for_a_step_without_prompts() -> None:
    pacer = _taught()
    pacer.note_sent(_decode(2), 1.0)
    assert pacer.wait_s(1.0) == 0.0
    pacer.note_sent(_prompt(3, 200), 1.0)
    assert pacer.wait_s(1.0) == 0.0, "the prompts have not begun"
    pacer.note_result(0.02, 1.02)
    assert pacer.wait_s(1.02) == pytest.approx(0.28)


def test_time_is_left_for_the_message() -> None:
    pacer = _taught()
    pacer.note_sent(_prompt(2, 5), 1.0)
    assert pacer.wait_s(1.0) == pytest.approx(0.005)
    pacer.note_result(0.01, 1.01)
    pacer.note_sent(_prompt(3, 2), 2.0)
    assert pacer.wait_s(2.0) == 0.0


def test_the_least_time_counts_and_a_slow_machine_is_believed_slowly() -> None:
    pacer = _taught()
    for step_id, duration_s, row_s in ((2, 0.1, 0.001), (3, 0.4, 0.0011), (4, 0.4, 0.00121), (5, 0.05, 0.0005)):
        pacer.note_sent(_prompt(step_id, 100), 0.0)
        pacer.note_result(duration_s, 0.0)
        pacer.note_sent(_prompt(step_id, 100), 0.0)
        assert pacer.wait_s(0.0) == pytest.approx(0.7 * 100 * row_s)
        pacer.note_result(100 * row_s, 0.0)


def test_prompts_that_come_together_share_a_step() -> None:
    pacer = _taught(row_s=0.0005)
    pacer.note_arrival(64, 1.0)
    assert pacer.wait_s(1.0) == pytest.approx(0.002), "a small part of what it takes"
    pacer.note_arrival(32, 1.001)
    assert pacer.wait_s(1.001) == pytest.approx(0.003), "the next one may follow as closely"
    pacer.note_arrival(96, 1.003)
    assert pacer.wait_s(1.003) == pytest.approx(0.004), "that is the most"
    pacer.note_arrival(64, 1.005)
    assert pacer.wait_s(1.005) == 0.0, "the step is full"


def test_a_prompt_waits_for_nobody_while_something_runs() -> None:
    pacer = _taught()
    pacer.note_sent(_decode(2), 1.0)
    pacer.note_arrival(64, 1.0)
    assert pacer.wait_s(1.0) == 0.0


def test_gathering_ends_with_the_plan() -> None:
    pacer = _taught()
    pacer.note_arrival(64, 1.0)
    pacer.note_sent(_prompt(2, 64), 1.01)
    pacer.note_result(0.128, 1.11)
    assert pacer.wait_s(1.11) == 0.0
    pacer.note_arrival(1, 2.0)
    assert pacer.wait_s(2.0) == pytest.approx(0.002 / 16)
