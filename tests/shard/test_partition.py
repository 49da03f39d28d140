from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shard.partition import Slice, split, split_heads

parts_strategy = st.integers(1, 16)


@given(total=st.integers(1, 300), parts=parts_strategy)
def test_every_row_is_on_exactly_one_rank_and_all_ranks_have_one_shape(total: int, parts: int) -> None:
    slices = [split(total, parts=parts, index=i) for i in range(parts)]
    assert [row for s in slices for row in range(s.start, s.stop)] == list(range(total))
    assert {s.size for s in slices} == {-(-total // parts)}
    assert all(0 <= s.stop - s.start <= s.size for s in slices)


@given(group=st.integers(1, 9), kv_heads=st.integers(1, 20), parts=parts_strategy)
def test_heads_are_where_attention_needs_them(group: int, kv_heads: int, parts: int) -> None:
    ranks = [split_heads(group * kv_heads, kv_heads, parts=parts, index=i) for i in range(parts)]
    assert len({(r.q.size, r.kv.size) for r in ranks}) == 1
    q_heads = Counter(head for r in ranks for head in range(r.q.start, r.q.stop))
    assert q_heads == Counter(range(group * kv_heads)), "each query head exactly once"
    copies = max(1, parts // kv_heads)
    held = Counter(head for r in ranks for head in range(r.kv.start, r.kv.stop))
    assert held == Counter(dict.fromkeys(range(kv_heads), copies)), "a kv head is replicated only where ranks abound"
    for r in ranks:
        assert r.q.size == r.kv.size * r.heads_per_kv
        for local, head in enumerate(range(r.q.start, r.q.stop)):
            assert r.kv.start + local // r.heads_per_kv == head // group, "a query head sits with its kv head"


def test_the_default_model_on_two_and_four_ranks() -> None:
    assert [split_heads(9, 3, parts=2, index=i).kv for i in range(2)] == [Slice(0, 2, 2), Slice(2, 3, 2)]
    assert [split_heads(9, 3, parts=4, index=i).q for i in range(4)] == [
        Slice(0, 3, 3),
        Slice(3, 6, 3),
        Slice(6, 9, 3),
        Slice(0, 0, 3),
    ]


def test_a_cut_in_heads_scales_to_rows() -> None:
    assert Slice(1, 3, 4).scaled(16) == Slice(16, 48, 64)


def test_heads_that_form_no_groups_are_refused() -> None:
    with pytest.raises(ValueError, match="9 attention heads cannot be grouped over 2"):
        split_heads(9, 2, parts=1, index=0)
