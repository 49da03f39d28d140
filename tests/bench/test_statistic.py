"""Ratios with their confidence, and what is said of them."""

import math
import random

import pytest
from scipy import stats

from bench.statistic import Ratio, typical_ratio, verdict


@pytest.mark.parametrize("num", [6, 7, 12, 30])
def test_interval_is_that_of_wilcoxons_test(num: int) -> None:
    """Its bounds are where the exact test begins to doubt: a shift within them is believed, one outside is not."""
    rng = random.Random(num)
    logs = [rng.gauss(0.0, 0.05) for _ in range(num)]
    found = typical_ratio([math.exp(value) for value in logs])
    for bound, outside in ((math.log(found.low), -1e-6), (math.log(found.high), 1e-6)):
        for shift, believed in ((bound - outside, True), (bound + outside, False)):
            test = stats.wilcoxon([value - shift for value in logs], method="exact")
            assert bool(test.pvalue > 0.05) is believed


def test_a_burst_in_one_pair_moves_little() -> None:
    ratios = [1.0 + 0.002 * i for i in range(-10, 11)]
    calm, disturbed = typical_ratio(ratios), typical_ratio([*ratios[:-1], 5.0])
    assert disturbed.value == pytest.approx(calm.value, abs=0.004)
    assert disturbed.high < 1.03


def test_on_over_off_agrees_with_off_over_on() -> None:
    ratios = [1.1, 1.2, 0.9, 1.01, 0.97, 1.3, 1.0]
    forward, back = typical_ratio(ratios), typical_ratio([1 / ratio for ratio in ratios])
    assert (forward.value, forward.low, forward.high) == pytest.approx((1 / back.value, 1 / back.high, 1 / back.low))


@pytest.mark.parametrize("num", [1, 5])
def test_too_few_pairs_have_open_bounds(num: int) -> None:
    found = typical_ratio([1.5] * num)
    assert found == Ratio(pytest.approx(1.5), 0.0, math.inf)
    assert str(found) == "1.500 [too few pairs]"
    assert verdict(found, 0.98) == "not settled"


@pytest.mark.parametrize(
    ("low", "high", "said"), [(0.98, 1.1, "kept"), (0.9, 1.1, "not settled"), (0.9, 0.97, "MISSED")]
)
def test_verdict(low: float, high: float, said: str) -> None:
    assert verdict(Ratio((low + high) / 2, low, high), 0.98) == said
