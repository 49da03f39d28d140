"""The meter's process, on a small buffer."""

import pytest

from bench.bandwidth import bandwidth_meter
from bench.errors import BenchError


def test_each_call_measures() -> None:
    with bandwidth_meter(1 << 20, threads=1) as measure:
        first, second = measure(), measure()
    assert first > 0
    assert second > 0
    assert first != second


def test_a_failure_is_told() -> None:
    with pytest.raises(BenchError, match=r"bench\.bandwidth failed"), bandwidth_meter(-1, threads=1):
        pass
