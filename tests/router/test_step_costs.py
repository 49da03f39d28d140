"""Costs between measurements."""

from itertools import pairwise

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


def test_what_asking_takes_is_not_what_a_step_takes() -> None:
    costs = StepCosts(
        [
            plain(1, 1, 0, 10),
            plain(8, 8, 0, 20),
            StepCost(1, 1, 0, Proposal.LOOKUP, 0.010, 0.001),
            StepCost(8, 8, 0, Proposal.LOOKUP, 0.020, 0.004),
            StepCost(16, 16, 0, Proposal.LOOKUP, 0.030, 0.008),
        ]
    )
    assert costs.proposal_seconds(Proposal.LOOKUP, 1) == pytest.approx(0.001)
    assert costs.proposal_seconds(Proposal.LOOKUP, 8) == pytest.approx(0.004)
    assert costs.proposal_seconds(Proposal.LOOKUP, 0) == 0
    assert costs.proposal_seconds(Proposal.HEADS, 3) == 0
    assert costs.seconds(16, 0) == pytest.approx(0.030)


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
    drafts = costs.draft_costs(int(rows))
    assert [cost.first for cost in drafts[:2]] == [0, 1]
    assert all(cost.seconds >= -1e-12 for cost in drafts)
    taken = sum((right.first - left.first) * left.seconds for left, right in pairwise(drafts))
    assert costs.draft_seconds(int(rows), drafts[-1].first) == pytest.approx(taken)


def test_drafts_are_free_until_they_are_dear() -> None:
    costs = StepCosts([plain(n, n, 0, ms) for n, ms in ((1, 10), (8, 10), (9, 11.2), (16, 14), (32, 24))])
    assert costs.checking == 0
    assert [(cost.first, pytest.approx(cost.seconds)) for cost in costs.draft_costs(4)] == [
        (0, 0.0),
        (1, 0.0),
        (4, 0.0012),
        (5, 0.0004),
        (12, 0.000625),
        (28, 0.000625),
    ]
    assert costs.draft_seconds(8, 0.3) == pytest.approx(0.0012), "one at least"
    assert costs.draft_seconds(8, 8) == pytest.approx(0.004)


def test_checking_costs_what_drafts_add_to_as_many_rows() -> None:
    plain_steps = [plain(n, n, 100 * n, n + 10) for n in (1, 2, 4, 8)]
    checked = [plain(2, 4, 200, 14.5), plain(4, 8, 400, 18.4), plain(1, 3, 100, 19), plain(8, 16, 800, 26.5)]
    costs = StepCosts([*plain_steps, *checked])
    assert costs.checking == pytest.approx(0.0005)
    assert costs.seconds(8, 0) == pytest.approx(0.018), "not what was checked in as many rows"
    assert costs.seconds(16, 0) == pytest.approx(0.026), "without the checking"
    assert costs.draft_seconds(4, 4) == pytest.approx(0.0045)
    assert [cost.seconds for cost in costs.draft_costs(4)] == [pytest.approx(ms * 1e-3) for ms in (1.5, 1, 1, 1)]


def test_where_more_rows_are_only_known_with_drafts_checking_is_not_told_from_rows() -> None:
    costs = StepCosts([plain(1, 1, 0, 10), plain(1, 17, 0, 18)])
    assert costs.is_known
    assert costs.checking == 0
    assert costs.seconds(9, 0) == pytest.approx(0.014)
