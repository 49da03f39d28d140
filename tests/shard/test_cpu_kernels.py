"""The compiled kernels against torch in float32, on random shapes; outputs are poisoned first."""

import logging
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from shard.cpu import build
from shard.cpu.kernels import CpuKernels, PagedSteps, cpu_kernels

BFLOAT16 = torch.bfloat16
# A result is rounded once, to 8 bits.
TOLERANCE = {"rtol": 2**-7, "atol": 1e-2}


@pytest.fixture(scope="module")
def kernels() -> CpuKernels:
    found = cpu_kernels()
    assert found is not None, "these tests need a C compiler"
    return found


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


@settings(max_examples=60, deadline=None)
@given(
    sequences=st.lists(st.tuples(st.integers(0, 90), st.integers(1, 6)), min_size=1, max_size=5),
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 5),
    dim=st.sampled_from([16, 64, 80, 128]),
    block_size=st.sampled_from([1, 4, 16]),
    seed=st.integers(0, 99),
)
def test_attention_over_pages_in_any_order(
    sequences: list[tuple[int, int]], kv_heads: int, group: int, dim: int, block_size: int, seed: int
) -> None:
    """Sequences of (committed length, rows); a stray row before and after them must stay untouched."""
    kernels = cpu_kernels()
    assert kernels is not None
    heads, num_rows = kv_heads * group, sum(rows for _, rows in sequences) + 2
    num_blocks = [-(-(length + rows) // block_size) for length, rows in sequences]
    order = torch.randperm(sum(num_blocks), generator=torch.Generator().manual_seed(seed)).add(1).tolist()
    tables = [[order.pop() for _ in range(count)] for count in num_blocks]
    pages = draw(2, sum(num_blocks) + 1, kv_heads, block_size, dim, seed=seed)
    qkv = draw(num_rows, heads + 2 * kv_heads, dim, seed=seed + 1)
    firsts = [1]
    for _, rows in sequences[:-1]:
        firsts.append(firsts[-1] + rows)
    steps = PagedSteps(
        tables=tables,
        first_rows=firsts,
        num_rows=[rows for _, rows in sequences],
        lengths=torch.tensor([length for length, _ in sequences]),
    )
    out = torch.full((num_rows, heads, dim), 777.0, dtype=BFLOAT16)
    step_rows = torch.full((num_rows, 2 * kv_heads, dim), 777.0, dtype=BFLOAT16)
    kernels.attend(qkv, pages, steps, out=out, step_rows=step_rows, block_size=block_size)

    assert torch.equal(step_rows[1:-1], qkv[1:-1, heads:])
    assert (step_rows[0] == 777).all()
    assert (step_rows[-1] == 777).all()
    expected = torch.full_like(out, 777.0).float()
    for (length, rows), first, table in zip(sequences, firsts, tables, strict=True):
        gathered = pages[:, table].float().transpose(1, 2).reshape(2, kv_heads, -1, dim)[:, :, :length]
        own = qkv[first : first + rows, heads:].float().view(rows, 2, kv_heads, dim).permute(1, 2, 0, 3)
        keys, values = torch.cat([gathered, own], 2).repeat_interleave(group, 1)
        queries = qkv[first : first + rows, :heads].float().transpose(0, 1)
        visible = torch.arange(length + rows) <= length + torch.arange(rows)[:, None]
        attended = F.scaled_dot_product_attention(queries, keys, values, attn_mask=visible)
        expected[first : first + rows] = attended.transpose(0, 1)
    torch.testing.assert_close(out.float(), expected, **TOLERANCE)


def test_without_a_compiler_the_service_goes_on_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    with caplog.at_level(logging.WARNING):
        assert cpu_kernels.__wrapped__() is None
    assert "no C compiler" in caplog.text


def test_a_compiler_that_fails_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(build, "_COMPILE", ("--no-such-flag",))
    with pytest.raises(build.BuildError, match="cc failed"):
        build.built_library()
    assert not list(tmp_path.rglob("*.so"))
