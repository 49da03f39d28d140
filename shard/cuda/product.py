"""Products with weights of 8 bits by Triton kernels. Owns how the work is cut into programs.

A step of few rows takes as long as reading the weights: half as long as in 16 bits. The sizes of tiles are chosen by
arithmetic, not yet by measurement.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from shard.cuda.device import num_processors, power_of_two
from shard.cuda.product_kernels import add_splits, multiply_tiles

# The least that a matrix product takes of its rows, and so many a program takes at most.
_LEAST_ROWS, _MOST_ROWS = 16, 64
_TILE_OUTPUTS, _TILE_INPUTS = 64, 128
# Fewer inputs would not pay for the adding.
_LEAST_INPUTS_OF_SPLIT = 512
_PROGRAMS_PER_PROCESSOR = 2
# Tiles of inputs on their way at once, within the 99 KB of shared memory that the smallest devices have.
_NUM_STAGES = 3
_TILE_ADDED = 512
# From so many rows on the arithmetic takes longer than widening the weight once for the library's product.
_MANY_ROWS = 256


def multiply(x: Tensor, weight: Tensor, scales: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """As `shard.cuda.kernels.Multiply` says."""
    num_rows, (num_outputs, num_inputs) = len(x), weight.shape
    if num_rows >= _MANY_ROWS:
        return _widened(x, weight, scales, bias).to(dtype)
    x = x if x.stride(1) == 1 else x.contiguous()
    out = x.new_empty((num_rows, num_outputs), dtype=dtype)
    tile_rows = min(_MOST_ROWS, power_of_two(num_rows, least=_LEAST_ROWS))
    grid = -(-num_outputs // _TILE_OUTPUTS), -(-num_rows // tile_rows)
    num_splits = _num_splits(grid[0] * grid[1], num_inputs, x.device)
    # In whole tiles.
    per_split = -(-num_inputs // (num_splits * _TILE_INPUTS)) * _TILE_INPUTS
    num_splits = -(-num_inputs // per_split)
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
        per_split,
        x.stride(0),
        NUM_OUTPUTS=num_outputs,
        NUM_INPUTS=num_inputs,
        TILE_ROWS=tile_rows,
        TILE_OUTPUTS=_TILE_OUTPUTS,
        TILE_INPUTS=_TILE_INPUTS,
        num_warps=4,
        num_stages=_NUM_STAGES,
    )
    if sums is not None:
        add_splits[-(-num_outputs // _TILE_ADDED), num_rows](
            sums,
            scales,
            bias,
            out,
            num_rows,
            num_splits,
            NUM_OUTPUTS=num_outputs,
            TILE_OUTPUTS=_TILE_ADDED,
        )
    return out


def _widened(x: Tensor, weight: Tensor, scales: Tensor, bias: Tensor | None) -> Tensor:
    """By the library, whose result is rounded once more before the scale."""
    out = F.linear(x, weight.to(x.dtype)).float() * scales
    return out if bias is None else out + bias


def _num_splits(num_programs: int, num_inputs: int, device: torch.device) -> int:
    """As many as fill the device, if there are inputs enough."""
    wanted = _PROGRAMS_PER_PROCESSOR * num_processors(device) // num_programs
    return max(1, min(wanted, num_inputs // _LEAST_INPUTS_OF_SPLIT))
