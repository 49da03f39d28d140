"""The compiled kernels against torch in float32, on random shapes; outputs are poisoned first."""

import random
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from shard.attention_spec import AttentionSpec
from shard.cpu.kernels import CpuKernels, cpu_kernels
from shard.cpu.spans import PagedSpans
from tests.shard.targets import TARGETS, compiled_for

BFLOAT16 = torch.bfloat16
# A result is rounded once, to 8 bits.
TOLERANCE = {"rtol": 2**-7, "atol": 1e-2}


@pytest.fixture(scope="module", autouse=True, params=TARGETS)
def kernels(request: pytest.FixtureRequest) -> Iterator[CpuKernels]:
    with compiled_for(request.param):
        found = cpu_kernels()
        assert found is not None
        yield found


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(BFLOAT16)


@pytest.mark.parametrize("shape", [(1, 576), (5, 64), (200, 1000)])
def test_rms_norm(kernels: CpuKernels, shape: tuple[int, int]) -> None:
    x, weight = draw(*shape), draw(shape[1], seed=1)
    expected = F.rms_norm(x.float(), (shape[1],), weight.float(), 1e-5)
    torch.testing.assert_close(kernels.rms_norm(x, weight, 1e-5).float(), expected, **TOLERANCE)


@pytest.mark.parametrize("shape", [(1, 1536), (3, 7), (100, 1000)])
def test_silu_mul(kernels: CpuKernels, shape: tuple[int, int]) -> None:
    gate_up = 4 * draw(shape[0], 2 * shape[1])
    gate, up = gate_up.float().chunk(2, -1)
    torch.testing.assert_close(kernels.silu_mul(gate_up).float(), F.silu(gate) * up, **TOLERANCE)


def test_rotation_touches_the_heads_it_is_given_and_no_others(kernels: CpuKernels) -> None:
    qkv, cos, sin = draw(6, 5, 16), draw(6, 1, 16, seed=1), draw(6, 1, 16, seed=2)
    before = qkv.clone()
    kernels.rotate(qkv[:, :3], cos, sin)
    x = before[:, :3].float()
    torch.testing.assert_close(qkv[:, :3].float(), x * cos.float() + x.roll(8, -1) * sin.float(), **TOLERANCE)
    assert torch.equal(qkv[:, 3:], before[:, 3:])


def random_tree(num_rows: int, rng: random.Random) -> list[list[int]]:
    """Of each row, the rows from the root to it."""
    paths = [[0]]
    for row in range(1, num_rows):
        paths.append([*rng.choice(paths), row])
    return paths


@settings(max_examples=80)
@given(
    sequences=st.lists(st.tuples(st.integers(0, 90), st.integers(1, 7) | st.just(65)), min_size=1, max_size=5),
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 5),
    dim=st.sampled_from([16, 64, 80, 128, 256]),
    block_size=st.sampled_from([1, 4, 16]),
    window=st.none() | st.integers(1, 100),
    softcap=st.none() | st.sampled_from([0.05, 1.0, 50.0]),
    trees=st.booleans(),
    chunk=st.tuples(st.integers(0, 40), st.integers(0, 50)),
    seed=st.integers(0, 99),
)
def test_attention_over_pages_in_any_order(
    sequences: list[tuple[int, int]],
    kv_heads: int,
    group: int,
    dim: int,
    block_size: int,
    window: int | None,
    softcap: float | None,
    trees: bool,
    chunk: tuple[int, int],
    seed: int,
) -> None:
    """Sequences of (committed length, rows), then a prompt chunk; a stray row behind them must stay untouched."""
    kernels, rng = cpu_kernels(), random.Random(seed)
    assert kernels is not None
    spec = AttentionSpec(scale=0.2, window=window, softcap=softcap)
    spans = [*sequences, chunk] if chunk[1] else sequences
    heads, num_rows = kv_heads * group, sum(rows for _, rows in spans)
    num_blocks = [-(-(length + rows) // block_size) for length, rows in spans]
    order = rng.sample(range(1, sum(num_blocks) + 1), sum(num_blocks))
    tables = [[order.pop() for _ in range(count)] for count in num_blocks]
    qkv = draw(num_rows, heads + 2 * kv_heads, dim, seed=seed + 1)
    pages = torch.full((2, sum(num_blocks) + 1, kv_heads, block_size, dim), 1e30, dtype=BFLOAT16)
    most_rows = max(rows for _, rows in sequences)
    ancestors = torch.zeros(len(sequences) if trees else 1, most_rows, most_rows, dtype=torch.bool)
    out = torch.full((num_rows, heads, dim), 777.0, dtype=BFLOAT16)
    step_rows = torch.full((num_rows + 1, 2 * kv_heads, dim), 777.0, dtype=BFLOAT16)
    expected = torch.full_like(out, 777.0).float()
    first, positions = 0, []
    chain = [list(range(row + 1)) for row in range(most_rows)]
    for s, ((length, rows), table) in enumerate(zip(spans, tables, strict=True)):
        is_chunk = s == len(sequences)
        committed = draw(length, 2, kv_heads, dim, seed=seed + 2 + s)
        for position in range(length):
            pages[:, table[position // block_size], :, position % block_size] = committed[position]
        paths = random_tree(rows, rng) if trees and not is_chunk else [list(range(row + 1)) for row in range(rows)]
        for row, path in enumerate([] if is_chunk else paths if trees else chain):
            ancestors[s if trees else 0, row, path] = True
        positions += [length + len(path) - 1 for path in paths]
        for row, path in enumerate(paths):
            # What the row sees, in the order of its text: what a chain would be.
            own = qkv[[first + r for r in path], heads:].view(-1, 2, kv_heads, dim)
            text = torch.cat((committed, own)).float()[-(window or 1 << 20) :]
            keys, values = text.repeat_interleave(group, 2).unbind(1)
            scores = spec.scale * torch.einsum("hd,khd->hk", qkv[first + row, :heads].float(), keys)
            scores = softcap * torch.tanh(scores / softcap) if softcap else scores
            expected[first + row] = torch.einsum("hk,khd->hd", scores.softmax(-1), values)
        first += rows
    steps = PagedSpans(
        tables=tables,
        num_rows=[rows for _, rows in spans],
        num_steps=len(sequences),
        positions=torch.tensor(positions),
        ancestors=ancestors,
    )
    slots = kernels.find_slots(steps, block_size)
    assert slots.tolist() == [
        table[position // block_size] * block_size + position % block_size
        for table, position in zip(
            [table for table, (_, rows) in zip(tables, spans, strict=True) for _ in range(rows)], positions, strict=True
        )
    ]
    kernels.attend(
        qkv, pages, steps, out=out, step_rows=step_rows, physical_slots=slots, block_size=block_size, spec=spec
    )

    num_steps = sum(rows for _, rows in sequences)
    assert torch.equal(step_rows[:num_steps], qkv[:num_steps, heads:])
    assert (step_rows[num_steps:] == 777).all()
    written = pages.movedim(3, 2).reshape(2, -1, kv_heads, dim)[:, slots[num_steps:]].movedim(0, 1)
    assert torch.equal(written, qkv[num_steps:, heads:].view(-1, 2, kv_heads, dim))
    torch.testing.assert_close(out.float(), expected, **TOLERANCE)


@pytest.mark.parametrize("num_spans", [1, 3, 100])
def test_commit_moves_the_rows_of_each_path_to_their_slots_in_all_layers(kernels: CpuKernels, num_spans: int) -> None:
    rng = random.Random(num_spans)
    counts = [rng.randint(1, 4) for _ in range(num_spans)]
    num_rows = sum(counts)
    steps, pages = draw(3, num_rows + 1, 4, 8), draw(3, 2, 120, 2, 4, 8, seed=1)
    slots = torch.tensor(rng.sample(range(480), num_rows))
    spans = PagedSpans(
        tables=[[0]] * num_spans,
        num_rows=counts,
        num_steps=num_spans,
        positions=torch.zeros(num_rows, dtype=torch.int64),
        ancestors=torch.ones(1, 4, 4, dtype=torch.bool),
    )
    # What is behind the rows that are kept means nothing.
    path = torch.full((num_spans, 6), 1 << 40)[:, :5]
    num_kept = torch.tensor([rng.randint(0, count) for count in counts])
    expected, first = pages.clone(), 0
    for s, (count, kept) in enumerate(zip(counts, num_kept.tolist(), strict=True)):
        rows = sorted(rng.sample(range(count), kept))
        path[s, :kept] = torch.tensor(rows)
        for row in rows:
            slot = int(slots[first + row])
            expected[:, :, slot // 4, :, slot % 4] = steps[:, first + row].view(3, 2, 2, 8)
        first += count
    kernels.commit(steps, pages, spans, path, num_kept, slots)
    assert torch.equal(pages, expected)
