"""Row by row what lies between a layer's products, by Triton kernels: norms with the sum before them, rotation, gates;
and by how much rows are rotated, once for all layers.

In a step of few rows each kernel takes a microsecond or two, whatever it does: so there are few. Owns how the work is
cut into programs.
"""

import torch
from torch import Tensor

from shard.cuda.device import WARP, early, power_of_two
from shard.cuda.row_kernels import multiply_gated, normalise, rotate_heads, write_rotation
from shard.gate import Gate

_TILE_HEADS, _TILE_WIDTH = 8, 1024
# Elements of a row that a thread holds at most.
_PER_THREAD, _MOST_WARPS = 16, 16


def rms_norm(x: Tensor, factor: Tensor, eps: float, added: Tensor | None = None) -> Tensor:
    num_rows, size = x.shape
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    tile = power_of_two(size, least=WARP)
    warps = min(_MOST_WARPS, max(1, tile // (WARP * _PER_THREAD)))
    normalise[num_rows,](
        x,
        None if added is None else added.contiguous(),
        factor,
        out,
        eps,
        x.stride(0),
        SIZE=size,
        TILE=tile,
        **early(x.device),
        num_warps=warps,
    )
    return out


def rotation(positions: Tensor, frequencies: Tensor, scale: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    num_rows, half = len(positions), len(frequencies)
    cos = torch.empty(num_rows, 1, 2 * half, dtype=dtype, device=positions.device)
    sin = torch.empty_like(cos)
    padded = power_of_two(half, least=WARP)
    write_rotation[num_rows,](
        positions.contiguous(),
        frequencies,
        cos,
        sin,
        scale,
        DIM=2 * half,
        PADDED_HALF=padded,
        **early(positions.device),
        num_warps=padded // WARP,
    )
    return cos, sin


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> None:
    num_rows, num_heads, dim = x.shape
    assert x.stride()[1:] == (dim, 1)
    tiles = -(-num_heads // _TILE_HEADS)
    half = power_of_two(dim // 2, least=1)
    rotate_heads[num_rows, tiles](
        x,
        cos,
        sin,
        num_heads,
        x.stride(0),
        DIM=dim,
        TILE_HEADS=_TILE_HEADS,
        PADDED_HALF=half,
        **early(x.device),
        num_warps=4,
    )


def gate_mul(gate_up: Tensor, gate: Gate) -> Tensor:
    gate_up = gate_up.contiguous()
    num_rows, width = gate_up.shape[0], gate_up.shape[1] // 2
    out = gate_up.new_empty((num_rows, width))
    tiles = -(-width // _TILE_WIDTH)
    multiply_gated[num_rows, tiles](
        gate_up, out, WIDTH=width, GATE=gate, TILE=_TILE_WIDTH, **early(gate_up.device), num_warps=4
    )
    return out
