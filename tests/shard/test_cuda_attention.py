"""The Triton attention kernel against the torch path, on random steps (cuda_steps.py).

Compiled where there is a GPU. Without one Triton's interpreter runs it on CPU: tests/test_triton_interpreter.py
calls this file in a process where TRITON_INTERPRET is set.
"""

import random
from functools import partial

import pytest
import torch

from shard import attention
from shard.attention_groups import Span
from shard.attention_spec import AttentionSpec
from shard.cuda import kernels
from shard.cuda.interface import Attend
from shard.forward_batch import ForwardBatch
from shard.kv_cache import KVCache
from tests.shard.cuda_steps import TOLERANCE, Shape, check, device_spans, random_step, reference
from tests.shard.triton_device import DEVICE, DTYPES, INTERPRETED, needs_gpu

pytestmark = [] if INTERPRETED else [pytest.mark.gpu, needs_gpu]

SHAPES = {
    "8B": Shape(2, 4, 128),
    "default model": Shape(3, 3, 64),
    "one head": Shape(1, 1, 16, block_size=1),
    "odd group": Shape(1, 7, 96, block_size=4),
    "odd size": Shape(2, 1, 80, block_size=5),
    "gemma": Shape(2, 2, 256, spec=AttentionSpec(scale=0.1, window=40, softcap=50.0)),
    "window": Shape(2, 2, 32, block_size=8, spec=AttentionSpec(scale=0.2, window=3)),
    "low cap": Shape(1, 4, 64, spec=AttentionSpec(scale=0.2, softcap=0.05)),
}


@pytest.fixture
def attend() -> Attend:
    from shard.cuda.attention import attend

    return attend


@pytest.fixture(params=[1, 5], ids=["whole", "5 splits"])
def splits(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many splits of the context, whatever the device would take."""
    monkeypatch.setattr("shard.cuda.attention._num_splits", lambda *_: request.param)


@pytest.mark.usefixtures("splits")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", SHAPES)
def test_any_step_gives_what_the_torch_path_gives(
    attend: Attend, name: str, dtype: torch.dtype, request: pytest.FixtureRequest
) -> None:
    rng = random.Random(request.node.name)
    steps = [(rng.choice([0, 1, 15, 16, rng.randint(2, 300)]), rng.randint(1, 9)) for _ in range(rng.randint(1, 3))]
    chunks = [(rng.choice([0, rng.randint(1, 150)]), rng.randint(1, 40)) for _ in range(rng.randint(0, 2))]
    step = random_step(SHAPES[name], steps=steps, chunks=chunks, trees=rng.random() < 0.5, seed=rng.randint(0, 999))
    check(attend, step, dtype, DEVICE)


@pytest.mark.usefixtures("splits")
@pytest.mark.parametrize("name", ["8B", "odd size", "gemma"])
def test_pages_of_8_bits(attend: Attend, name: str) -> None:
    if DEVICE.type == "cuda" and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("the device has no such numbers")
    # The interpreter rounds to such numbers wrongly (125.5 becomes 64), so it is given what needs no rounding.
    exact = torch.float8_e4m3fn if INTERPRETED else torch.bfloat16
    steps, chunks = [(100, 5), (0, 3), (31, 1)], [(40, 20), (0, 9)]
    step = random_step(SHAPES[name], steps=steps, chunks=chunks, trees=True, dtype=exact)
    check(attend, step, torch.float16, DEVICE, torch.float8_e4m3fn)


@pytest.mark.usefixtures("splits")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["8B", "odd size", "gemma"])
def test_heads_are_rotated_as_they_are_read(attend: Attend, name: str, dtype: torch.dtype) -> None:
    step = random_step(SHAPES[name], steps=[(100, 5), (0, 3), (31, 1)], trees=True)
    check(attend, step, dtype, DEVICE, by_kernel=True)


@pytest.mark.usefixtures("splits")
@pytest.mark.parametrize("name", ["8B", "odd size", "gemma"])
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
@pytest.mark.parametrize("by_kernel", [False, True])
def test_a_row_that_overflows_is_stored_as_zero(attend: Attend, name: str, by_kernel: bool) -> None:
    step = random_step(SHAPES[name], steps=[(20, 5)], trees=True)
    check(attend, step, torch.float16, DEVICE, overflowed=1, by_kernel=by_kernel)


def test_what_overflows_is_the_same_to_others_in_a_prompt_as_a_draft_and_as_the_last_token(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And the same as by the torch path, to the rows before it and behind it."""
    monkeypatch.setattr("shard.cuda.attention.num_processors", lambda device: 132)
    qkv = torch.randn(20, 3, 16, generator=torch.Generator().manual_seed(0)).to(DEVICE, torch.float16)
    qkv[9, 1:] = torch.inf

    def attended(device_type: str, num_rows: int, *, direct: bool) -> torch.Tensor:
        monkeypatch.setattr(kernels, "_DEVICE_TYPE", device_type)
        sizes = {"num_layers": 1, "num_blocks": 2, "block_size": 16, "num_kv_heads": 1, "head_dim": 16}
        cache = KVCache(**sizes, dtype=torch.float16, device=DEVICE, max_step_rows=20)
        outs = []
        for rows, positions in zip(qkv.split(num_rows), torch.arange(20, device=DEVICE).split(num_rows), strict=True):
            span = Span(num_rows, [1, 2], direct=direct)
            batch = ForwardBatch.build(token_ids=positions, positions=positions, spans=[span], cache=cache)
            assert (batch.device_spans is not None) == (device_type == DEVICE.type)
            spec = AttentionSpec(scale=0.25)
            outs.append(attention.attend(rows.clone(), layer=0, batch=batch, cache=cache, spec=spec))
            if not direct:
                cache.commit(torch.arange(num_rows, device=DEVICE), batch.physical_slots)
        assert cache.pages(0).isfinite().all()
        return torch.cat(outs)

    expected = attended("none", 20, direct=True)
    for num_rows, direct in ((20, True), (20, False), (1, False)):
        out = attended(DEVICE.type, num_rows, direct=direct)
        torch.testing.assert_close(out, expected, **TOLERANCE[torch.float16])


@pytest.mark.usefixtures("splits")
@pytest.mark.parametrize("trees", [False, True])
def test_large_trees_take_several_tiles(attend: Attend, trees: bool) -> None:
    step = random_step(Shape(1, 4, 64), steps=[(40, 65), (0, 64), (129, 1)], trees=trees)
    check(attend, step, torch.float16, DEVICE)


@pytest.mark.usefixtures("splits")
@pytest.mark.parametrize("context", [4095, 32768])
def test_long_contexts(attend: Attend, context: int) -> None:
    step = random_step(Shape(1, 4, 64), steps=[(context, 4), (3, 1)], trees=True)
    check(attend, step, torch.float16, DEVICE)


def test_a_window_in_a_long_context(attend: Attend, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path of the tree is longer than the window, and most splits are empty."""
    monkeypatch.setattr("shard.cuda.attention._num_splits", lambda *_: 9)
    shape = Shape(1, 2, 32, spec=AttentionSpec(scale=0.2, window=6))
    check(attend, random_step(shape, steps=[(5000, 20), (7, 20)], chunks=[(900, 30)]), torch.float16, DEVICE)


def test_chunks_without_step_rows(attend: Attend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shard.cuda.attention._num_splits", lambda *_: 1)
    check(attend, random_step(Shape(2, 2, 64), steps=[], chunks=[(0, 200), (77, 3)]), torch.float16, DEVICE)


@pytest.mark.parametrize(
    ("num_programs", "most_keys", "expected"),
    [(8, 8192, 33), (8, 700, 10), (8, 100, 1), (256, 8192, 1), (1000, 8192, 1), (1, 1 << 20, 64)],
)
def test_a_context_is_split_as_far_as_that_fills_the_device(
    monkeypatch: pytest.MonkeyPatch, num_programs: int, most_keys: int, expected: int
) -> None:
    from shard.cuda import attention

    monkeypatch.setattr(attention, "num_processors", lambda device: 132)
    assert attention._num_splits(num_programs, most_keys, DEVICE) == expected


@pytest.mark.skipif(INTERPRETED, reason="a graph needs a device")
def test_a_captured_step_is_replayed_with_other_content(attend: Attend) -> None:
    """Other rows, lengths, trees and blocks, in the tensors that were captured."""
    shape, dtype = Shape(2, 4, 128), torch.bfloat16
    first, second = (
        random_step(shape, steps=[(context, 8) for context in contexts], trees=True, seed=seed)
        for seed, contexts in enumerate([(1000, 30, 0), (600, 999, 5)])
    )
    # The tables of both are as wide as the longer of the two.
    spans, others = device_spans(first, DEVICE), device_spans(second, DEVICE)
    assert spans.tables.shape == others.tables.shape
    pages = torch.zeros(2, 200, shape.kv_heads, shape.block_size, shape.dim, dtype=dtype, device=DEVICE)
    step_rows = torch.zeros(32, 2 * shape.kv_heads, shape.dim, dtype=dtype, device=DEVICE)
    qkv = first.qkv.to(DEVICE, dtype)
    out = torch.zeros(len(qkv), shape.heads, shape.dim, dtype=dtype, device=DEVICE)
    call = partial(
        attend, qkv, pages, spans, out=out, step_rows=step_rows, block_size=shape.block_size, spec=shape.spec
    )
    call()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    qkv.copy_(second.qkv)
    spans.rows.copy_(others.rows)
    spans.tables.copy_(others.tables)
    spans.positions.copy_(others.positions)
    assert spans.ancestors is not None
    assert others.ancestors is not None
    spans.ancestors.copy_(others.ancestors)
    for span, committed in zip(second.spans, second.committed, strict=True):
        for position, kv in enumerate(committed):
            block, place = span.block_ids[position // shape.block_size], position % shape.block_size
            pages[:, block, :, place] = kv.view(2, shape.kv_heads, shape.dim).to(DEVICE, dtype)
    graph.replay()
    torch.testing.assert_close(out.double().cpu(), reference(second), rtol=2**-7, atol=1e-2)
