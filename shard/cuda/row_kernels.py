"""What lies between a layer's products, and the rotation that all layers share, in Triton's language: each reads and
writes its rows once.

Own the arithmetic: float32 throughout, rounded once.
"""

import triton
import triton.language as tl

from shard.cuda.early import begin_with_inputs


@triton.jit
def activate(gate, GATE: tl.constexpr):
    """float32; see `shard.gate`."""
    argument = gate
    if GATE == "gelu_tanh":
        # (1 + tanh(a)) / 2 is the sigmoid of 2 * a.
        argument = 1.5957691216057308 * (gate + 0.044715 * gate * gate * gate)
    # In a form that does not overflow.
    shrunk = tl.exp(-tl.abs(argument))
    return gate * tl.where(argument < 0, shrunk, 1.0) / (1 + shrunk)


@triton.jit
def normalise(x, added, factor, out, eps, x_stride, SIZE: tl.constexpr, TILE: tl.constexpr, IS_EARLY: tl.constexpr):
    """Grid (rows). x [N, SIZE] becomes x + added, unless that is None, and out is that normalised, times the factor."""
    begin_with_inputs(IS_EARLY)
    row = tl.program_id(0).to(tl.int64)
    place = tl.arange(0, TILE)
    is_there = place < SIZE
    x_at = x + row * x_stride + place
    values = tl.load(x_at, mask=is_there, other=0.0)
    if added is not None:
        more = tl.load(added + row * SIZE + place, mask=is_there, other=0.0)
        values = (values.to(tl.float32) + more.to(tl.float32)).to(x.dtype.element_ty)
        tl.store(x_at, values, mask=is_there)
    values = values.to(tl.float32)
    scale = 1 / tl.sqrt(tl.sum(values * values, 0) / SIZE + eps)
    factors = tl.load(factor + place, mask=is_there, other=0.0).to(tl.float32)
    tl.store(out + row * SIZE + place, (values * scale * factors).to(out.dtype.element_ty), mask=is_there)


# Positions may be a view into a step's numbers, and begin anywhere.
@triton.jit(do_not_specialize_on_alignment=["positions"])
def write_rotation(
    positions,
    frequencies,
    cos,
    sin,
    scale,
    DIM: tl.constexpr,
    PADDED_HALF: tl.constexpr,
    IS_EARLY: tl.constexpr,
):
    """Grid (rows). cos and sin [N, DIM], times the scale, as `shard.layers.rotary` has them: of positions [N] int64
    times frequencies [DIM / 2]."""
    begin_with_inputs(IS_EARLY)
    row = tl.program_id(0).to(tl.int64)
    half: tl.constexpr = DIM // 2
    place = tl.arange(0, PADDED_HALF)
    in_half = place < half
    angle = tl.load(positions + row).to(tl.float32) * tl.load(frequencies + place, mask=in_half, other=0.0)
    c = (tl.cos(angle) * scale).to(cos.dtype.element_ty)
    s = (tl.sin(angle) * scale).to(sin.dtype.element_ty)
    at = row * DIM + place
    tl.store(cos + at, c, mask=in_half)
    tl.store(cos + at + half, c, mask=in_half)
    tl.store(sin + at, -s, mask=in_half)
    tl.store(sin + at + half, s, mask=in_half)


@triton.jit(do_not_specialize=["num_heads"])
def rotate_heads(
    x,
    cos,
    sin,
    num_heads,
    x_stride,
    DIM: tl.constexpr,
    TILE_HEADS: tl.constexpr,
    PADDED_HALF: tl.constexpr,
    IS_EARLY: tl.constexpr,
):
    """Grid (rows, tiles of heads). x [N, heads, DIM] in place; cos and sin [N, DIM] as `shard.layers.rotary` has
    them."""
    begin_with_inputs(IS_EARLY)
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * TILE_HEADS + tl.arange(0, TILE_HEADS)
    half: tl.constexpr = DIM // 2
    place = tl.arange(0, PADDED_HALF)
    in_half = place < half
    # The second halves: without the sign.
    c = tl.load(cos + row * DIM + half + place, mask=in_half, other=0.0).to(tl.float32)[None, :]
    s = tl.load(sin + row * DIM + half + place, mask=in_half, other=0.0).to(tl.float32)[None, :]
    at = x + row * x_stride + head[:, None] * DIM + place[None, :]
    is_there = (head < num_heads)[:, None] & in_half[None, :]
    first = tl.load(at, mask=is_there, other=0.0).to(tl.float32)
    second = tl.load(at + half, mask=is_there, other=0.0).to(tl.float32)
    tl.store(at, (first * c - second * s).to(x.dtype.element_ty), mask=is_there)
    tl.store(at + half, (second * c + first * s).to(x.dtype.element_ty), mask=is_there)


@triton.jit
def multiply_gated(gate_up, out, WIDTH: tl.constexpr, GATE: tl.constexpr, TILE: tl.constexpr, IS_EARLY: tl.constexpr):
    """Grid (rows, tiles of the width). gate_up [N, 2 * WIDTH], gates first; out [N, WIDTH]."""
    begin_with_inputs(IS_EARLY)
    row = tl.program_id(0).to(tl.int64)
    place = tl.program_id(1) * TILE + tl.arange(0, TILE)
    is_there = place < WIDTH
    gate = tl.load(gate_up + row * 2 * WIDTH + place, mask=is_there, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * 2 * WIDTH + WIDTH + place, mask=is_there, other=0.0).to(tl.float32)
    tl.store(out + row * WIDTH + place, (activate(gate, GATE) * up).to(out.dtype.element_ty), mask=is_there)
