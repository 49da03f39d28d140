"""Products by the Triton kernels, against float64.

Compiled where there is a GPU, interpreted without one, as test_cuda_attention.py.
"""

import pytest
import torch
import torch.nn.functional as F

from shard.cuda.interface import Multiply
from shard.gate import Gate
from shard.layers.quantize import Quantization, quantized
from tests.shard.triton_device import DEVICE, DTYPES, INTERPRETED, needs_gpu

pytestmark = [] if INTERPRETED else [pytest.mark.gpu, needs_gpu]

TOLERANCE = {torch.bfloat16: 2**-8, torch.float16: 2**-11, torch.float32: 1e-5}


@pytest.fixture(params=[1, 132], ids=["small device", "large one"])
def multiply(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Multiply:
    from shard.cuda import product

    monkeypatch.setattr(product, "num_processors", lambda device: request.param)
    monkeypatch.setattr(product, "is_roomy", lambda device: request.param > 1)
    return product.multiply


def draw(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("quantization", ["int8", "fp8"])
@pytest.mark.parametrize(
    ("num_rows", "num_outputs", "num_inputs", "has_bias"),
    [
        (1, 64, 128, False),
        (3, 70, 1500, True),
        (17, 9, 33, True),
        (32, 70, 1500, True),
        (65, 200, 1024, False),
        (300, 40, 130, True),
    ],
)
def test_products_are_those_of_the_numbers_that_are_kept(
    multiply: Multiply,
    dtype: torch.dtype,
    quantization: Quantization,
    num_rows: int,
    num_outputs: int,
    num_inputs: int,
    has_bias: bool,
) -> None:
    weight = quantized(draw(num_outputs, num_inputs, seed=1), quantization)
    # Rows of a wider tensor; what lies between them must not be read.
    wide = torch.full((num_rows, num_inputs + 3), torch.nan)
    wide[:, :num_inputs] = draw(num_rows, num_inputs, seed=2)
    x = wide.to(DEVICE, dtype)[:, :num_inputs]
    bias = draw(num_outputs, seed=3).to(dtype) if has_bias else None
    exact = x.double().cpu() @ (weight.values.double() * weight.scales[:, None]).T
    if bias is not None:
        exact += bias.double()
    values, scales = weight.values.to(DEVICE), weight.scales.to(DEVICE)
    on_device = None if bias is None else bias.to(DEVICE)
    for out_dtype in (dtype, torch.float32):
        out = multiply(x, values, scales, on_device, out_dtype)
        assert out.dtype == out_dtype
        tolerance = TOLERANCE[out_dtype] * float(exact.abs().max())
        torch.testing.assert_close(out.double().cpu(), exact, rtol=0, atol=2 * tolerance)


@pytest.mark.parametrize("quantization", ["int8", "fp8"])
@pytest.mark.parametrize("num_rows", [1, 40, 300])
def test_sums_may_be_greater_than_float16_before_their_scale(
    multiply: Multiply, quantization: Quantization, num_rows: int
) -> None:
    weight = quantized(draw(24, 256, seed=1) / 50, quantization)
    x = draw(num_rows, 256, seed=2)
    # What trained models are known for.
    x[:, 7] += 1000
    x = x.half()
    exact = x.double() @ (weight.values.double() * weight.scales[:, None]).T
    assert (exact / weight.scales).abs().max() > torch.finfo(torch.float16).max > exact.abs().max()
    out = multiply(x.to(DEVICE), weight.values.to(DEVICE), weight.scales.to(DEVICE), None, torch.float16)
    torch.testing.assert_close(out.double().cpu(), exact, rtol=2**-10, atol=2**-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("quantization", [None, "int8", "fp8"])
@pytest.mark.parametrize("gate", [None, "silu", "gelu_tanh"])
@pytest.mark.parametrize(("num_outputs", "num_inputs", "has_bias"), [(64, 1024, False), (7, 1500, True), (5, 33, True)])
def test_a_single_row_has_a_kernel_of_its_own(
    dtype: torch.dtype,
    quantization: Quantization | None,
    gate: Gate | None,
    num_outputs: int,
    num_inputs: int,
    has_bias: bool,
) -> None:
    from shard.cuda.product import multiply

    num_rows = num_outputs * (2 if gate else 1)
    weight, scales = draw(num_rows, num_inputs, seed=1).to(dtype), None
    exact_weight = weight.double()
    if quantization:
        weight, scales = quantized(weight, quantization)
        exact_weight = weight.double() * scales[:, None]
    x = draw(1, num_inputs, seed=2).to(dtype)
    bias = draw(num_rows, seed=3).to(dtype) if has_bias else None
    exact = F.linear(x.double(), exact_weight, None if bias is None else bias.double())
    if gate:
        first, second = exact.chunk(2, dim=1)
        exact = (F.silu(first) if gate == "silu" else F.gelu(first, approximate="tanh")) * second
    on_device = [None if tensor is None else tensor.to(DEVICE) for tensor in (scales, bias)]
    for out_dtype in (dtype, torch.float32):
        out = multiply(x.to(DEVICE), weight.to(DEVICE), *on_device, out_dtype, gate)
        assert out.dtype == out_dtype
        bound = 2 * TOLERANCE[out_dtype] * float(exact.abs().max())
        torch.testing.assert_close(out.double().cpu(), exact, rtol=0, atol=bound)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("gate", [None, "silu"])
def test_the_library_multiplies_several_rows(dtype: torch.dtype, gate: Gate | None) -> None:
    from shard.cuda.product import multiply

    x, weight = draw(5, 100, seed=1).to(DEVICE, dtype), draw(64, 100, seed=2).to(DEVICE, dtype)
    exact = x.double() @ weight.double().T
    if gate:
        first, second = exact.chunk(2, dim=1)
        exact = F.silu(first) * second
    for out_dtype in (dtype, torch.float32):
        out = multiply(x, weight, None, None, out_dtype, gate)
        assert out.dtype == out_dtype
        # With a gate the product is rounded before it.
        bound = 4 * TOLERANCE[dtype if gate else out_dtype] * float(exact.abs().max())
        torch.testing.assert_close(out.double(), exact, rtol=0, atol=bound)
