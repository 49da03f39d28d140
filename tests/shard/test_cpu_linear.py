"""The compiled bfloat16 product against float64, on random shapes, and the choice between it and the others."""

from collections.abc import Iterator
from typing import Any, get_args

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from shard.cpu.kernels import NAME, CpuKernels, cpu_kernels
from shard.cpu.tiles import LEAST_ROWS
from shard.gate import Gate
from shard.layers import matmul
from shard.layers.matmul import Product, choose_kernel
from shard.layers.quantize import QuantizedWeight, quantized
from tests.shard.targets import TARGETS, compiled_for

CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True, params=TARGETS)
def target(request: pytest.FixtureRequest) -> Iterator[None]:
    with compiled_for(request.param):
        yield


def kernels() -> CpuKernels:
    found = cpu_kernels()
    assert found is not None, "these tests need a C compiler"
    return found


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


def multiply(x: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    found = kernels()
    packed_bias = None if bias is None else found.packing.pack_outputs(bias)
    return found.linear(x, found.packing.pack(weight), packed_bias, num_outputs=len(weight), dtype=dtype)


def multiply_int8(x: Tensor, weight: QuantizedWeight, bias: Tensor | None) -> Tensor:
    return Product(weight, bias, torch.bfloat16)(x)


def exact(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    out = x.double() @ weight.double().T
    return out if bias is None else out + bias.double()


def exact_gated(x: Tensor, weight: Tensor, bias: Tensor | None, gate: Gate) -> Tensor:
    into, up = exact(x, weight, bias).chunk(2, dim=-1)
    return (F.silu(into) if gate == "silu" else F.gelu(into, approximate="tanh")) * up


def assert_rounded_once(out: Tensor, expected: Tensor, more: Tensor | float = 0.0) -> None:
    """Half a unit of bfloat16's last place, what float32 sums in another order may move, and `more`."""
    assert out.dtype == torch.bfloat16
    assert bool(((out.double() - expected).abs() <= 2**-8 * expected.abs() + 1e-4 + more).all())


def moved_by_integers(x: Tensor, weight: Tensor) -> Tensor:
    """The most that products [N, out] are off where inputs x [N, in] are integers of 16 bits (integers.h): each by half
    of a unit, of which 32639 are the greatest of its 128."""
    inputs, numbers = (
        F.pad(side.double().abs(), (0, -side.shape[1] % 128)).unflatten(1, (-1, 128)) for side in (x, weight)
    )
    units = inputs.amax(2) / 32639
    return units / 2 @ numbers.sum(2).T


def assert_gated_and_rounded_once(
    out: Tensor, x: Tensor, numbers: Tensor, bias: Tensor | None, gate: Gate, *, is_int8: bool
) -> None:
    expected, more = exact_gated(x, numbers, bias, gate), torch.zeros(())
    if is_int8 and kernels().packing.multiplies_integers:
        # What each sum is off, times the other; neither gate rises by more than 1.13 times what its input does.
        of_gate, of_up = (1.01 * moved_by_integers(x, numbers)).chunk(2, dim=-1)
        into, up = exact(x, numbers, bias).chunk(2, dim=-1)
        more = 1.13 * of_gate * (up.abs() + of_up) + of_up * into.abs()
    # Two sums are multiplied, each off by what float32 rounds.
    assert bool(((out.double() - expected).abs() <= 2**-8 * expected.abs() + 1e-3 + more).all())


@pytest.fixture
def no_hardware(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a processor without bfloat16, whatever this one has."""
    monkeypatch.setattr(torch._C, "_has_mkldnn", False)


SHAPES: dict[str, st.SearchStrategy[Any]] = {
    "num_rows": st.one_of(st.integers(1, 40), st.just(100)),
    "num_inputs": st.one_of(st.integers(1, 70), st.sampled_from([576, 1001])),
    "num_outputs": st.one_of(st.integers(1, 50), st.sampled_from([301, 576])),
    "with_bias": st.booleans(),
    "seed": st.integers(0, 99),
}


@settings(max_examples=80)
@given(**SHAPES)
def test_the_product_equals_the_exact_one_rounded_once(
    num_rows: int, num_inputs: int, num_outputs: int, with_bias: bool, seed: int
) -> None:
    x, weight = draw(num_rows, num_inputs, seed=seed), draw(num_outputs, num_inputs, seed=seed + 1)
    bias = draw(num_outputs, seed=seed + 2) if with_bias else None
    assert_rounded_once(multiply(x, weight, bias), exact(x, weight, bias))


@settings(max_examples=80)
@given(**SHAPES)
def test_the_product_of_a_weight_in_8_bits_equals_that_of_its_numbers(
    num_rows: int, num_inputs: int, num_outputs: int, with_bias: bool, seed: int
) -> None:
    x, weight = draw(num_rows, num_inputs, seed=seed), quantized(draw(num_outputs, num_inputs, seed=seed + 1), "int8")
    bias = draw(num_outputs, seed=seed + 2) if with_bias else None
    numbers = weight.values * weight.scales[:, None].double()
    more = 1.01 * moved_by_integers(x, numbers) if kernels().packing.multiplies_integers else 0.0
    assert_rounded_once(multiply_int8(x, weight, bias), exact(x, numbers, bias), more)


@pytest.mark.parametrize("num_inputs", [5, 128, 300])
def test_an_input_far_above_the_others_costs_those_of_its_group_accuracy_and_no_more(num_inputs: int) -> None:
    x, weight = draw(3, num_inputs, seed=0), quantized(draw(40, num_inputs, seed=1), "int8")
    x[0, 1], x[1, 2] = 1e4, -1e4
    numbers = weight.values * weight.scales[:, None].double()
    numbers[:, [1, 2]] = 0
    weight.values[:, [1, 2]] = 0
    out = multiply_int8(x, weight, None)
    assert_rounded_once(out, exact(x, numbers, None), moved_by_integers(x, numbers))
    assert_rounded_once(out[2:], exact(x[2:], numbers, None), 0.01)


@pytest.mark.parametrize("value", [0.0, 1e-38, 1e-20, 1e30])
def test_inputs_of_any_size_are_multiplied(value: float) -> None:
    x, weight = torch.full((2, 130), value).bfloat16(), quantized(draw(33, 130, seed=1).sign() / 256, "int8")
    x[1] = 1
    numbers = weight.values * weight.scales[:, None].double()
    out, expected = multiply_int8(x, weight, None), exact(x, numbers, None)
    assert bool(((out.double() - expected).abs() <= 2**-7 * expected.abs() + 1e-30).all())


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_row_that_overflowed_is_told_from_numbers_and_leaves_others_alone(value: float) -> None:
    x, weight = draw(4, 200, seed=0), quantized(draw(40, 200, seed=1), "int8")
    expected = multiply_int8(x, weight, None)
    x[1, 150] = value
    out = multiply_int8(x, weight, None)
    assert not bool(out[1].isfinite().any())
    assert torch.equal(out[[0, 2, 3]], expected[[0, 2, 3]])


@settings(max_examples=80)
@given(**SHAPES, gate=st.sampled_from(get_args(Gate)), is_int8=st.booleans())
def test_a_gated_product_equals_the_exact_one(
    num_rows: int, num_inputs: int, num_outputs: int, with_bias: bool, seed: int, gate: Gate, is_int8: bool
) -> None:
    x, weight = draw(num_rows, num_inputs, seed=seed), draw(2 * num_outputs, num_inputs, seed=seed + 1)
    bias = draw(2 * num_outputs, seed=seed + 2) if with_bias else None
    found, numbers, scales = kernels(), weight, None
    if is_int8:
        weight, scales = quantized(weight, "int8")
        numbers = weight * scales[:, None].double()
        scales = found.packing.pack_outputs(found.packing.gated(scales))
    packed_bias = None if bias is None else found.packing.pack_outputs(found.packing.gated(bias))
    packed = found.packing.pack(found.packing.gated(weight))
    out = found.linear(x, packed, packed_bias, num_outputs=num_outputs, scales=scales, gate=gate)
    assert_gated_and_rounded_once(out, x, numbers, bias, gate, is_int8=is_int8)


def test_a_row_is_the_same_in_8_bits_whatever_rows_are_beside_it() -> None:
    x, weight = draw(11, 130, seed=0), quantized(draw(33, 130, seed=1), "int8")
    together = multiply_int8(x, weight, None)
    assert all(torch.equal(together[i : i + 1], multiply_int8(x[i : i + 1], weight, None)) for i in range(11))


def test_a_weight_of_several_groups_of_outputs_is_multiplied_whole() -> None:
    x, weight = draw(9, 1536, seed=0), draw(501, 1536, seed=1)
    assert_rounded_once(multiply(x, weight, None), exact(x, weight, None))


def test_what_lies_beside_the_tensors_has_no_part_in_the_product() -> None:
    """What lies around rows and weights in memory may be anything."""
    held, weights = torch.full((7, 21), torch.nan).bfloat16(), torch.full((15, 21), torch.nan).bfloat16()
    held[2:5], weights[4:11] = draw(3, 21, seed=0), draw(7, 21, seed=1)
    x, weight = held[2:5], weights[4:11]
    assert_rounded_once(multiply(x, weight, None), exact(x, weight, None))


def test_a_row_is_the_same_whatever_rows_are_beside_it() -> None:
    """Every row sums its products in one order, so a token does not depend on the size of its batch."""
    x, weight = draw(11, 130, seed=0), draw(33, 130, seed=1)
    together = multiply(x, weight, None)
    assert all(torch.equal(together[i : i + 1], multiply(x[i : i + 1], weight, None)) for i in range(11))


def test_sums_are_given_as_they_are_where_that_is_asked_for() -> None:
    x, weight, bias = draw(7, 130, seed=0), draw(33, 130, seed=1), draw(33, seed=2)
    out = multiply(x, weight, bias, torch.float32)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out.double(), exact(x, weight, bias), rtol=1e-5, atol=1e-4)


def test_no_rows_are_no_error() -> None:
    assert multiply(draw(0, 8, seed=0), draw(5, 8, seed=1), None).shape == (0, 5)


@pytest.mark.parametrize("x", [torch.ones(2, 7).bfloat16(), torch.ones(2, 8), torch.ones(8, 2).bfloat16().T])
def test_rows_that_the_kernel_would_misread_are_refused(x: Tensor) -> None:
    with pytest.raises(ValueError, match="contiguous bfloat16 rows of 8"):
        multiply(x, torch.ones(3, 8).bfloat16(), None)


@pytest.fixture
def tiles(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As on a processor with them; whose product this one's library takes too, by other means."""
    monkeypatch.setattr("shard.cpu.kernels.has_tiles", lambda: True)
    cpu_kernels.cache_clear()
    yield
    cpu_kernels.cache_clear()


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("gate", [None, *get_args(Gate)])
@pytest.mark.parametrize("is_int8", [False, True])
@pytest.mark.parametrize("num_outputs", [96, 301])
def test_many_rows_are_left_to_tiles(num_outputs: int, is_int8: bool, gate: Gate | None) -> None:
    total = num_outputs * (2 if gate else 1)
    x, weight, bias = draw(LEAST_ROWS, 130, seed=0), draw(total, 130, seed=1), draw(total, seed=2)
    numbers, given = weight.double(), weight
    if is_int8:
        given = quantized(weight, "int8")
        numbers = given.values * given.scales[:, None].double()
    product = Product(given, bias, torch.bfloat16, gate=gate)
    out, few = product(x), product(x[1:])
    if kernels().arithmetic(is_int8=False) == "pairs of bfloat16":
        # Who has tiles is compiled for floats.
        assert torch.equal(out[1:], few)
        return
    expected = exact_gated(x, numbers, bias, gate) if gate else exact(x, numbers, bias)
    # Rounded after each operation, and few rows once.
    torch.testing.assert_close(out.double(), expected, rtol=2**-5, atol=0.2)
    if gate:
        assert_gated_and_rounded_once(few, x[1:], numbers, bias, gate, is_int8=is_int8)
    else:
        assert_rounded_once(few, expected[1:], 1.01 * moved_by_integers(x[1:], numbers) + 1e-3 if is_int8 else 1e-3)
    assert out.is_contiguous()
    assert not torch.equal(out[1:], few)
    assert "tiles" in kernels().arithmetic(is_int8=is_int8)


@pytest.mark.usefixtures("no_hardware")
def test_without_bfloat16_hardware_the_compiled_product_is_chosen_and_named() -> None:
    assert choose_kernel(torch.bfloat16, CPU) == NAME
    assert {choose_kernel(dtype, CPU) for dtype in (torch.float64, torch.float32, torch.float16)} == {"torch"}


@pytest.mark.usefixtures("no_hardware")
def test_tensors_of_any_layout_are_multiplied() -> None:
    x, weight, bias = draw(19, 6, seed=0).T, draw(19, 40, seed=1).T, draw(40, seed=2)
    product = Product(weight, bias)
    assert product.kernel == NAME
    assert_rounded_once(product(x), exact(x, weight, bias))


@pytest.mark.usefixtures("no_hardware")
def test_without_a_compiler_torch_multiplies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matmul, "kernels_for", lambda dtype, device: None)
    x, weight = draw(5, 33, seed=0), draw(7, 33, seed=1)
    product = Product(weight, None)
    assert product.kernel == "torch"
    torch.testing.assert_close(product(x).double(), exact(x, weight, None), rtol=2**-7, atol=2**-6)


@pytest.mark.parametrize(
    ("dtype", "kernel"), [(torch.bfloat16, "torch-int8"), (torch.float16, "torch-int8"), (torch.float64, "torch")]
)
def test_without_a_compiler_torch_multiplies_in_8_bits(
    dtype: torch.dtype, kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(matmul, "kernels_for", lambda dtype, device: None)
    x, weight, bias = draw(5, 64, seed=0).to(dtype), quantized(draw(32, 64, seed=1), "int8"), draw(32, seed=2).to(dtype)
    product = Product(weight, bias, dtype)
    assert product.kernel == kernel
    expected = exact(x, weight.values * weight.scales[:, None].double(), bias)
    tolerance = 1e-12 if dtype == torch.float64 else 2**-6
    torch.testing.assert_close(product(x).double(), expected, rtol=tolerance, atol=tolerance)
