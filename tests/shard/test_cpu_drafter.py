"""A compiled drafter against one that works by torch's operations: both see the same steps."""

from unittest import mock

from hypothesis import given, settings
from hypothesis import strategies as st

from shard.speculation import drafter as drafter_module
from shard.speculation.prices import HostPrices
from tests.shard.drafting import DEPTH, Side, assert_same_steps, random_prices


@given(
    seed=st.integers(0, 10_000),
    min_match=st.sampled_from([None, 1, 2]),
    num_heads=st.sampled_from([0, 2, DEPTH + 1]),
    num_prices=st.integers(0, 3),
)
@settings(max_examples=150)
def test_both_learn_and_draft_the_same(seed: int, min_match: int | None, num_heads: int, num_prices: int) -> None:
    if not num_heads:
        min_match = min_match or 1
    compiled = Side(seed, min_match=min_match, num_heads=num_heads)
    with mock.patch.object(drafter_module, "drafter_library", return_value=None):
        plain = Side(seed, min_match=min_match, num_heads=num_heads)
    assert compiled.drafter._compiled is not None
    assert plain.drafter._compiled is None
    prices = HostPrices(random_prices(seed, num_prices))
    assert_same_steps((compiled, prices), (plain, prices), seed)
