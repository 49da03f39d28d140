"""Products by Triton kernels where they are faster than the library's. Owns which takes what, and how the work is cut.

A step of few rows takes as long as reading the weights. In 16 bits the library reads them as fast as the device can,
but for those of a single row: the kernel begins to read them before the step has come to it. In 8 bits there is no
kernel but ours. Sizes are chosen from sweeps over the matrices of Llama-3.1-8B, on an H200 and an H100
(bench/RESULTS.md, section 9).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from shard.cuda.device import early, is_roomy, num_processors, power_of_two
from shard.cuda.product_kernels import add_splits, multiply_row, multiply_tiles
from shard.cuda.rows import gate_mul
from shard.gate import Gate

# The least that a matrix product takes of its rows, and so many a program takes at most.
_LEAST_ROWS, _MOST_ROWS = 16, 64
# Fewer inputs would not pay for the adding.
_LEAST_INPUTS_OF_SPLIT, _MOST_SPLITS = 512, 4
_PROGRAMS_PER_PROCESSOR = 4
_TILE_ADDED = 512
# Of a single row: outputs, or pairs of gate and value.
_ROW_OUTPUTS, _ROW_PAIRS, _ROW_INPUTS, _ROW_WARPS = 4, 2, 1024, 2
# From so many rows on the arithmetic takes longer than widening the weight once for the library's product.
_MANY_ROWS = 256


@dataclass(frozen=True, slots=True)
class Tiles:
    """What a program takes at once; `stages` tiles of inputs are on their way, within its shared memory.
    `are_weights_left`: of the product, which Hopper's tensor cores take from registers, where weights are widened."""

    rows: int
    outputs: int
    inputs: int
    stages: int
    are_weights_left: bool = False

    @classmethod
    def of(cls, num_rows: int, dtype: torch.dtype, weights: torch.dtype, *, is_roomy: bool) -> "Tiles":
        rows = min(_MOST_ROWS, power_of_two(num_rows, least=_LEAST_ROWS))
        if rows == 2 * _LEAST_ROWS and is_roomy:
            return cls(rows, 64, 128, stages=4, are_weights_left=True)
        if rows > _LEAST_ROWS:
            outputs = 128 if is_roomy or dtype.itemsize == 2 else 64
            return cls(rows, outputs, 128, stages=3 if is_roomy and dtype.itemsize == 2 else 2)
        return cls(rows, 32, 256, stages=3) if weights == torch.int8 else cls(rows, 32, 128, stages=5)


def multiply(
    x: Tensor,
    weight: Tensor,
    scales: Tensor | None,
    bias: Tensor | None,
    dtype: torch.dtype,
    gate: Gate | None = None,
) -> Tensor:
    """As `shard.cuda.interface.Multiply` says."""
    if len(x) == 1:
        return _multiply_row(x, weight, scales, bias, dtype, gate)
    if scales is None:
        out = _by_library(x, weight, bias, dtype)
    elif len(x) >= _MANY_ROWS:
        out = _widened(x, weight, scales, bias).to(dtype)
    else:
        out = _multiply_tiles(x, weight, scales, bias, dtype)
    return out if gate is None else gate_mul(out, gate)


def _by_library(x: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    if dtype == x.dtype:
        return F.linear(x, weight, bias)
    # Rounded once, which on a CPU, for tests, takes widening both.
    out = torch.mm(x, weight.T, out_dtype=dtype) if x.is_cuda else x.to(dtype) @ weight.T.to(dtype)
    return out if bias is None else out + bias


def _multiply_row(
    x: Tensor, weight: Tensor, scales: Tensor | None, bias: Tensor | None, dtype: torch.dtype, gate: Gate | None
) -> Tensor:
    num_outputs = len(weight) // (2 if gate else 1)
    out = x.new_empty((1, num_outputs), dtype=dtype)
    tile = _ROW_PAIRS if gate else _ROW_OUTPUTS
    multiply_row[-(-num_outputs // tile),](
        x if x.stride(1) == 1 else x.contiguous(),
        weight,
        scales,
        bias,
        out,
        num_outputs,
        weight.shape[1],
        GATE=gate,
        TILE_OUTPUTS=tile,
        TILE_INPUTS=_ROW_INPUTS,
        **early(x.device),
        num_warps=_ROW_WARPS,
    )
    return out


def _multiply_tiles(x: Tensor, weight: Tensor, scales: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    num_rows, (num_outputs, num_inputs) = len(x), weight.shape
    x = x if x.stride(1) == 1 else x.contiguous()
    out = x.new_empty((num_rows, num_outputs), dtype=dtype)
    tiles = Tiles.of(num_rows, x.dtype, weight.dtype, is_roomy=is_roomy(x.device))
    grid = -(-num_outputs // tiles.outputs), -(-num_rows // tiles.rows)
    num_tiles = -(-num_inputs // tiles.inputs)
    per_split = -(-num_tiles // _num_splits(grid[0] * grid[1], num_inputs, x.device))
    num_splits = -(-num_tiles // per_split)
    sums = None
    if num_splits > 1:
        sums = torch.empty((num_splits, num_rows, num_outputs), dtype=torch.float32, device=x.device)
    multiply_tiles[*grid, num_splits](
        x,
        weight,
        scales,
        bias,
        out,
        sums,
        num_rows,
        num_outputs,
        num_inputs,
        per_split,
        x.stride(0),
        TILE_ROWS=tiles.rows,
        TILE_OUTPUTS=tiles.outputs,
        TILE_INPUTS=tiles.inputs,
        ARE_WEIGHTS_LEFT=tiles.are_weights_left,
        num_warps=4,
        num_stages=tiles.stages,
    )
    if sums is not None:
        add_splits[-(-num_outputs // _TILE_ADDED), num_rows](
            sums,
            scales,
            bias,
            out,
            num_rows,
            num_splits,
            num_outputs,
            TILE_OUTPUTS=_TILE_ADDED,
        )
    return out


def _widened(x: Tensor, weight: Tensor, scales: Tensor, bias: Tensor | None) -> Tensor:
    """By the library. Without the scale sums are too great for float16, and the scale is not to round logits."""
    out = _by_library(x, weight.to(x.dtype), None, torch.float32).mul_(scales)
    return out if bias is None else out + bias


def _num_splits(num_programs: int, num_inputs: int, device: torch.device) -> int:
    """As many as fill the device, if there are inputs enough."""
    wanted = _PROGRAMS_PER_PROCESSOR * num_processors(device) // num_programs
    return max(1, min(wanted, num_inputs // _LEAST_INPUTS_OF_SPLIT, _MOST_SPLITS))
