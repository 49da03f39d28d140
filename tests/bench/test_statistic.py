"""Mean ratios with their confidence, and what is said of them."""

import math

import pytest
from scipy import stats

from bench.statistic import MeanRatio, mean_ratio, verdict


def test_interval_is_students_on_the_logarithms() -> None:
    ratios = [0.97, 1.02, 1.1, 0.99, 1.05]
    logs = [math.log(ratio) for ratio in ratios]
    low, high = stats.t.interval(0.95, len(logs) - 1, loc=sum(logs) / len(logs), scale=stats.sem(logs))
    found = mean_ratio(ratios)
    assert (found.mean, found.low, found.high) == pytest.approx(
        (math.exp(sum(logs) / len(logs)), math.exp(low), math.exp(high)), rel=1e-4
    )


@pytest.mark.parametrize("num", [2, 3, 31, 32, 60])
def test_factors_of_the_table(num: int) -> None:
    ratios = [math.exp(0.1 * (-1) ** i) for i in range(num)]
    low, _ = stats.t.interval(0.95, num - 1, loc=0, scale=stats.sem([math.log(r) for r in ratios]))
    shift = math.log(mean_ratio(ratios).mean)
    assert math.log(mean_ratio(ratios).low) - shift == pytest.approx(low, rel=0.04)


def test_on_over_off_agrees_with_off_over_on() -> None:
    forward, back = mean_ratio([1.1, 1.2, 0.9]), mean_ratio([1 / 1.1, 1 / 1.2, 1 / 0.9])
    assert (forward.mean, forward.low, forward.high) == pytest.approx((1 / back.mean, 1 / back.high, 1 / back.low))


def test_one_ratio_has_open_bounds() -> None:
    found = mean_ratio([1.5])
    assert found == MeanRatio(pytest.approx(1.5), 0.0, math.inf)
    assert str(found) == "1.500 [one value]"


@pytest.mark.parametrize(
    ("low", "high", "said"), [(0.98, 1.1, "kept"), (0.9, 1.1, "not settled"), (0.9, 0.97, "MISSED")]
)
def test_verdict(low: float, high: float, said: str) -> None:
    assert verdict(MeanRatio((low + high) / 2, low, high), 0.98) == said
