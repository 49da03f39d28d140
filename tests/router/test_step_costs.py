"""Costs between measurements."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.proposal import Proposal
from router.step_costs import StepCost, StepCosts


def plain(sequences: int, rows: int, context: int, ms: float) -> StepCost:
    return StepCost(sequences, rows, context, Proposal.NONE, ms * 1e-3)


def test_context_is_told_apart_from_rows() -> None:
    costs = StepCosts([plain(1, 1, 100, 11), plain(1, 1, 1100, 21), plain(4, 4, 400, 24)])
    assert costs.per_context_token == pytest.approx(1e-5)
    assert costs.seconds(1, 0) == pytest.approx(0.010)
    assert costs.seconds(4, 0) == pytest.approx(0.020)
    assert costs.seconds(2.5, 500) == pytest.approx(0.020)
    # Behind the last measurement as between the last two.
    assert costs.seconds(7, 0) == pytest.approx(0.030)
    assert costs.row_seconds(1) == pytest.approx(0.01 / 3)


def test_asking_costs_what_it_adds_to_the_same_step() -> None:
    costs = StepCosts(
        [
            plain(1, 1, 0, 10),
            plain(8, 8, 0, 20),
            StepCost(1, 1, 0, Proposal.LOOKUP, 0.011),
            StepCost(8, 8, 0, Proposal.LOOKUP, 0.024),
            # Nothing was measured beside it.
            StepCost(5, 5, 0, Proposal.HEADS, 0.9),
        ]
    )
    assert costs.proposal_seconds(Proposal.LOOKUP, 1) == pytest.approx(0.001)
    assert costs.proposal_seconds(Proposal.LOOKUP, 8) == pytest.approx(0.004)
    assert costs.proposal_seconds(Proposal.LOOKUP, 0) == 0
    assert costs.proposal_seconds(Proposal.HEADS, 3) == 0


def test_without_measurements_nothing_is_known() -> None:
    assert not StepCosts().is_known
    assert StepCosts().seconds(5, 5) == 0


@given(
    st.lists(
        st.tuples(st.integers(1, 64), st.floats(0.1, 100), st.sampled_from([0, 50, 1000])), min_size=2, max_size=12
    ),
    st.floats(1, 100),
    st.floats(0, 50),
)
def test_more_rows_never_cost_less_however_disturbed_the_measurements(
    points: list[tuple[int, float, int]], rows: float, more: float
) -> None:
    costs = StepCosts([plain(n, n, context, ms) for n, ms, context in points])
    assert costs.seconds(rows + more, 10) >= costs.seconds(rows, 10) - 1e-12
    assert costs.row_seconds(rows) >= -1e-12


# Milliseconds by rows, as they are.
TRUE = {1: 10.0, 4: 12.0, 8: 20.0, 16: 35.0}


@pytest.mark.parametrize("disturbed", list(TRUE))
@pytest.mark.parametrize("pace", [0.7, 1.0, 2.0])
def test_a_disturbed_start_is_corrected_by_the_steps_that_follow(disturbed: int, pace: float) -> None:
    """Whatever the machine's pace is by then; it changes no ratio."""
    right = StepCosts([plain(n, n, 0, ms) for n, ms in TRUE.items()])
    costs = StepCosts([plain(n, n, 0, ms * (1.4 if n == disturbed else 1)) for n, ms in TRUE.items()])
    for number in range(3000):
        rows = 1 + 7 * number % 16
        costs.observe(rows, 0, Proposal.NONE, 0, right.seconds(rows, 0) * pace)
    for rows in (4, 8, 16):
        expected = right.seconds(rows, 0) / right.seconds(1, 0)
        assert costs.seconds(rows, 0) / costs.seconds(1, 0) == pytest.approx(expected, rel=0.06)


def test_a_slower_machine_changes_no_decision_and_a_single_delay_nearly_nothing() -> None:
    costs = StepCosts([plain(n, n, 0, ms) for n, ms in TRUE.items()])
    ratio = costs.row_seconds(4) / costs.seconds(4, 0)
    for number in range(500):
        costs.observe(4, 0, Proposal.NONE, 0, 0.024 if number > 250 else 0.012)
    costs.observe(4, 0, Proposal.NONE, 0, 5.0)
    assert costs.row_seconds(4) / costs.seconds(4, 0) == pytest.approx(ratio, rel=0.1)


def test_what_asking_takes_is_not_laid_to_the_rows() -> None:
    costs = StepCosts(
        [
            *(plain(n, n, 0, ms) for n, ms in TRUE.items()),
            *(StepCost(n, n, 0, Proposal.HEADS, TRUE[n] * 1.1e-3) for n in TRUE),
        ]
    )
    before = [seconds for _, seconds in costs.by_rows]
    for number in range(300):
        asked = number % 2
        costs.observe(8, 0, Proposal.HEADS if asked else Proposal.NONE, 8 * asked, 0.022 if asked else 0.020)
    assert [seconds for _, seconds in costs.by_rows] == pytest.approx(before)


def test_kinds_of_steps_that_were_not_seen_go_along_with_their_neighbours() -> None:
    costs = StepCosts([plain(n, n, 0, ms) for n, ms in TRUE.items()])
    for number in range(2000):
        rows = 1 + 7 * (number % 2)
        costs.observe(rows, 0, Proposal.NONE, 0, 0.010 if rows == 1 else 0.026)
    assert costs.seconds(8, 0) / costs.seconds(1, 0) == pytest.approx(2.6, rel=0.03)
    assert costs.seconds(16, 0) / costs.seconds(1, 0) > 1.1 * 3.5


def test_a_step_that_names_no_time_says_nothing() -> None:
    """However many there are: a pace that shrank to nothing would end the router."""
    costs = StepCosts([plain(n, n, 0, ms) for n, ms in TRUE.items()])
    before = list(costs.by_rows)
    for _ in range(30_000):
        costs.observe(4, 0, Proposal.NONE, 0, 0.0)
    assert costs.by_rows == before
    free = StepCosts([plain(1, 1, 0, 0.0), plain(8, 8, 0, 0.0)])
    free.observe(4, 0, Proposal.NONE, 0, 0.01)
    assert free.seconds(4, 0) == 0
