"""The cost model says what its formulas say; whether it is right, docs/cost-model.md weighs."""

from dataclasses import replace
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.cost_model import (
    CPU,
    H100,
    Hardware,
    ModelShape,
    Speculation,
    all_reduce_time,
    break_even_sequences,
    chain_tokens,
    most_sequences,
    speedup,
    step_time,
    tree_tokens,
)

MODELS = [ModelShape.smollm2_135m(), ModelShape.llama_8b(), ModelShape.llama_70b()]
# Round figures: a byte a nanosecond, an operation a nanosecond.
PLAIN = Hardware("plain", 1e9, 1e9, 1e9, 1e-3, 1e-4, 1e-2, 1e9, 1e8, 1e-6, 1e-5)

models = st.sampled_from(MODELS)
groups = st.sampled_from([(1, 1), (2, 1), (3, 1), (4, 1), (8, 1), (16, 2), (32, 4)])
probabilities = st.floats(0, 1)


@given(models, groups, st.integers(1, 64), st.integers(0, 64), st.integers(1, 16384))
def test_more_rows_are_never_cheaper(
    model: ModelShape, group: tuple[int, int], sequences: int, drafts: int, context: int
) -> None:
    step = partial(step_time, H100, model, ranks=group[0], nodes=group[1], context=context)
    fewer = step(sequences=sequences, rows=sequences * (1 + drafts))
    more = step(sequences=sequences, rows=sequences * (2 + drafts))
    assert more.total >= fewer.total
    assert all(a >= b for a, b in zip(more, fewer, strict=True))
    assert step(sequences=sequences + 1, rows=sequences * (2 + drafts)).total >= more.total


@given(st.sampled_from(MODELS[1:]), st.integers(1, 512))
def test_two_ranks_halve_weights_and_keys(model: ModelShape, rows: int) -> None:
    assert model.weights_of(1) == 2 * model.weights_of(2)
    one, two = (
        step_time(H100, model, ranks=ranks, nodes=1, sequences=rows, rows=rows, context=1000) for ranks in (1, 2)
    )
    assert two.matrices == pytest.approx(one.matrices / 2)
    assert two.attention == pytest.approx(one.attention / 2)
    assert one.reduce == 0 < two.reduce
    assert two.overhead == one.overhead


def test_weights_are_those_of_the_models() -> None:
    # 30 layers of 576 * (2 * 576 + 2 * 192 + 3 * 1536), and the LM head
    assert MODELS[0].weights_of(1) == 30 * 576 * 6144 + 576 * 49152
    # the published counts, less the embedding and the norms
    assert MODELS[1].weights_of(1) + 128256 * 4096 == pytest.approx(8.03e9, rel=1e-3)
    assert MODELS[2].weights_of(1) + 128256 * 8192 == pytest.approx(70.55e9, rel=1e-3)
    assert MODELS[1].kv_bytes_per_token(1) == 131072


def test_heads_are_padded_and_replicated() -> None:
    """As shard/partition.py does it."""
    small, large = MODELS[0], MODELS[2]
    assert [(small.heads_of(n), small.kv_heads_of(n)) for n in (1, 2, 3, 4)] == [(9, 3), (6, 2), (3, 1), (3, 1)]
    assert [(large.heads_of(n), large.kv_heads_of(n)) for n in (8, 16)] == [(8, 1), (4, 1)]
    assert large.kv_bytes_per_token(16) == large.kv_bytes_per_token(8)


def test_a_step_by_hand() -> None:
    """Two layers of 2 heads of 4 and one key-value head, hidden 8, width 16, 32 tokens; two nodes of two ranks."""
    model = ModelShape("hand", 2, 8, 2, 1, 4, 16, 32)
    step = step_time(PLAIN, model, ranks=4, nodes=2, sequences=3, rows=6, context=100, heads=1)
    # A rank: one query head (the second is on another), the key-value head, width 4, 8 tokens.
    weights = 2 * (8 * (4 + 2 * 4 + 4) + 3 * 8 * 4) + 8 * 8
    assert model.weights_of(4) == weights == 512
    # six rows are 12 operations a weight and outweigh its 2 bytes
    assert step.matrices == pytest.approx(6 * 2 * weights / 1e9)
    # keys and values of 100 tokens: 2 layers * 2 * 4 values of 2 bytes, thrice; 4 operations a value, row and token
    kv_bytes, attention_flops = 3 * 100 * 2 * 2 * 4 * 2, 4 * 6 * 100 * 4 * 2
    assert step.attention == pytest.approx(max(kv_bytes, attention_flops) / 1e9)

    def exchange(num_bytes: int) -> float:
        return 1e-3 + 2 * 1e-4 + 2 * 1e-2 + num_bytes / 1e9 + num_bytes / 2 / 1e8

    assert step.reduce == pytest.approx(5 * exchange(6 * 8 * 2) + 2 * exchange(6 * 32))
    assert step.overhead == pytest.approx(2 * 1e-6 + 1e-5)
    head = 8 * 8 + 8 * 8
    assert step.drafting == pytest.approx(2 * 3 * head / 1e9 + 2 * exchange(3 * 32))
    assert step.total == pytest.approx(sum(step))


@given(st.floats(0, 1e9), st.floats(0, 1e9), groups)
def test_an_all_reduce_grows_with_bytes_and_ranks(some: float, more: float, group: tuple[int, int]) -> None:
    ranks, nodes = group
    time = all_reduce_time(H100, some, ranks=ranks, nodes=nodes)
    assert time <= all_reduce_time(H100, some + more, ranks=ranks, nodes=nodes)
    if ranks > 1:
        assert time < all_reduce_time(H100, some, ranks=ranks * 2, nodes=nodes * 2)
    else:
        assert time == 0


@given(probabilities, probabilities, st.integers(0, 16))
def test_tokens_of_a_step(p: float, q: float, drafts: int) -> None:
    low, high = sorted((p, q))
    assert 1 <= chain_tokens(low, drafts) <= chain_tokens(high, drafts) <= 1 + drafts
    assert 1 <= tree_tokens(low, drafts) <= tree_tokens(low, drafts + 1) + 1e-12 <= 5 + 1e-9
    if 1 <= drafts <= 4:
        assert tree_tokens(low, drafts) >= chain_tokens(low, drafts) - 1e-12
    assert chain_tokens(0.5, 3) == 1.875
    assert tree_tokens(1.0, 4) == 5
    # the second candidate (.4 / 6) beats the fifth token of the chain, .6 ** 5 is not allowed, .6 ** 4 is better
    assert tree_tokens(0.6, 5) == pytest.approx(chain_tokens(0.6, 4) + 0.4 / 6)


@given(models, groups, probabilities, probabilities, st.integers(1, 16), st.integers(1, 8192))
def test_break_even_is_monotone_in_acceptance(
    model: ModelShape, group: tuple[int, int], p: float, q: float, drafts: int, context: int
) -> None:
    step = partial(step_time, H100, model, ranks=group[0], nodes=group[1], context=context)
    low, high = (
        break_even_sequences(step, Speculation(drafts, chain_tokens(p, drafts)), limit=256) for p in sorted((p, q))
    )
    assert (low or 257) <= (high or 257)


def test_break_even_is_the_first_that_does_not_pay() -> None:
    step = partial(step_time, CPU, MODELS[0], ranks=1, nodes=1, context=256)
    speculation = Speculation(3, chain_tokens(0.4, 3))
    first = break_even_sequences(step, speculation)
    assert first is not None
    assert first > 1
    assert speedup(step, speculation, first - 1) >= 1 > speedup(step, speculation, first)
    assert break_even_sequences(step, Speculation(3, 1.0)) in (1, 2)
    assert break_even_sequences(step, Speculation(3, 4.0)) is None


def test_memory_bounds_the_batch() -> None:
    """An H100 holds Llama-3.1-8B and 416 sequences of 1024 tokens, and no part of Llama-3.1-70B."""
    assert most_sequences(H100, MODELS[1], ranks=1, context=1024) == 416
    assert most_sequences(H100, MODELS[2], ranks=1, context=1024) == 0
    roomier = replace(H100, memory=2 * H100.memory)
    assert most_sequences(roomier, MODELS[1], ranks=1, context=1024) > 2 * 416
