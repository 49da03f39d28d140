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
