"""What lies between a layer's products, by the Triton kernels, against float64.

Compiled where there is a GPU, interpreted without one, as test_cuda_attention.py.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from shard.cuda import kernels
from shard.gate import Gate
from shard.layers.rotary import Rotary, inverse_frequencies
from shard.rope_config import RopeConfig
from tests.shard.triton_device import DEVICE, DTYPES, INTERPRETED, needs_gpu

pytestmark = [] if INTERPRETED else [pytest.mark.gpu, needs_gpu]

TOLERANCE = {torch.bfloat16: 2**-8, torch.float16: 2**-11, torch.float32: 1e-6}
each_dtype = pytest.mark.parametrize("dtype", DTYPES)


def draw(*shape: int, seed: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def assert_near(actual: Tensor, exact: Tensor) -> None:
    """Rounded once."""
    bound = TOLERANCE[actual.dtype] * float(exact.abs().max())
    torch.testing.assert_close(actual.double(), exact.double(), rtol=0, atol=bound)


@each_dtype
@pytest.mark.parametrize("has_added", [False, True])
@pytest.mark.parametrize(("num_rows", "size"), [(1, 64), (3, 100), (17, 576)])
def test_a_norm_is_of_the_sum_that_the_stream_becomes(
    dtype: torch.dtype, has_added: bool, num_rows: int, size: int
) -> None:
    from shard.cuda.rows import rms_norm

    x, factor = draw(num_rows, size, seed=1, dtype=dtype), draw(size, seed=2, dtype=torch.float32)
    added = draw(num_rows, size, seed=3, dtype=dtype) if has_added else None
    expected_x = x.clone() if added is None else x + added
    out = rms_norm(x, factor, 1e-5, added)
    assert torch.equal(x, expected_x)
    assert_near(out, F.rms_norm(expected_x.double(), (size,), factor.double(), 1e-5))


@each_dtype
@pytest.mark.parametrize("dim", [16, 80, 128])
def test_the_rotation_of_rows_that_stand_anywhere(dtype: torch.dtype, dim: int) -> None:
    from shard.cuda.rows import rotation

    # From the second number on: a view may begin anywhere.
    positions = torch.tensor([0, 0, 1, 7, 4097, 131071, 131072, (1 << 20) - 1], device=DEVICE)[1:]
    frequencies = inverse_frequencies(RopeConfig("default", theta=10000.0), dim).to(DEVICE)
    cos, sin = rotation(positions, frequencies, 1.25, dtype)
    # As in all implementations the angle is of float32.
    angles = (positions[:, None] * frequencies).double()[:, None]
    assert_near(cos, 1.25 * torch.cat([angles.cos(), angles.cos()], 2))
    assert_near(sin, 1.25 * torch.cat([-angles.sin(), angles.sin()], 2))


def test_a_rotation_is_by_the_kernel_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    rotary = Rotary(RopeConfig("default", theta=10000.0), 64, dtype=torch.float32, device=torch.device(DEVICE))
    positions = torch.arange(5, device=DEVICE) * 1000
    monkeypatch.setattr(kernels, "_DEVICE_TYPE", "none")
    expected = rotary.rotation(positions)
    monkeypatch.setattr(kernels, "_DEVICE_TYPE", DEVICE.type)
    made = rotary.rotation(positions)
    assert_near(made.cos, expected.cos)
    assert_near(made.sin, expected.sin)


@each_dtype
@pytest.mark.parametrize(("num_rows", "num_heads", "dim"), [(1, 4, 64), (5, 11, 80)])
def test_heads_are_rotated_and_what_lies_between_them_is_not(
    dtype: torch.dtype, num_rows: int, num_heads: int, dim: int
) -> None:
    from shard.cuda.rows import rotate

    qkv = draw(num_rows, num_heads + 3, dim, seed=1, dtype=dtype)
    config = RopeConfig("default", theta=10000.0)
    rotary = Rotary(config, dim, dtype=dtype, device=torch.device(DEVICE))
    rotation = rotary.rotation(torch.arange(num_rows, device=DEVICE) * 7)
    heads, before = qkv[:, :num_heads], qkv.double()
    expected = before[:, :num_heads] * rotation.cos + before[:, :num_heads].roll(dim // 2, -1) * rotation.sin
    rotate(heads, rotation.cos, rotation.sin)
    assert_near(heads, expected)
    assert torch.equal(qkv[:, num_heads:].double(), before[:, num_heads:])


@each_dtype
@pytest.mark.parametrize("gate", ["silu", "gelu_tanh"])
@pytest.mark.parametrize(("num_rows", "width"), [(1, 64), (3, 1300)])
def test_gates(dtype: torch.dtype, gate: Gate, num_rows: int, width: int) -> None:
    from shard.cuda.rows import gate_mul

    gate_up = draw(num_rows, 2 * width, seed=1, dtype=dtype)
    x, up = gate_up.double().chunk(2, dim=-1)
    expected = (F.silu(x) if gate == "silu" else F.gelu(x, approximate="tanh")) * up
    assert_near(gate_mul(gate_up, gate), expected)
