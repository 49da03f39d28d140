"""Products with weights of 8 or 16 bits, in Triton's language. Own the arithmetic; must not know how the work is cut.

Weights are widened in registers, which is exact, and sums are float32, so that each product is rounded once, after its
scale.
"""

import triton
import triton.language as tl

from shard.cuda.early import begin_early, wait_for_inputs
from shard.cuda.row_kernels import activate


@triton.jit
def multiply_row(
    x,
    weight,
    scales,
    bias,
    out,
    num_outputs,
    num_inputs,
    GATE: tl.constexpr,
    TILE_OUTPUTS: tl.constexpr,
    TILE_INPUTS: tl.constexpr,
    IS_EARLY: tl.constexpr,
):
    """Grid (tiles of outputs): out [1, num_outputs] of x [1, num_inputs]. `scales` and `bias` may be None. With a GATE
    an output is act(of the weight's first half) * of its second half.

    The next tile of weights is on its way while one is multiplied; the first is asked for before x is there.
    """
    begin_early(IS_EARLY)
    output = tl.program_id(0) * TILE_OUTPUTS + tl.arange(0, TILE_OUTPUTS)
    is_output = (output < num_outputs)[:, None]
    place = tl.arange(0, TILE_INPUTS)
    at = weight + output.to(tl.int64)[:, None] * num_inputs + place[None, :]
    second_half = num_outputs.to(tl.int64) * num_inputs
    is_read = is_output & (place < num_inputs)[None, :]
    weights = tl.load(at, mask=is_read, other=0.0)
    total = tl.zeros([TILE_OUTPUTS, TILE_INPUTS], tl.float32)
    if GATE is not None:
        others = tl.load(at + second_half, mask=is_read, other=0.0)
        other_total = tl.zeros([TILE_OUTPUTS, TILE_INPUTS], tl.float32)
    wait_for_inputs(IS_EARLY)
    for start in range(0, num_inputs, TILE_INPUTS):
        values = tl.load(x + start + place, mask=start + place < num_inputs, other=0.0).to(tl.float32)[None, :]
        at += TILE_INPUTS
        is_read = is_output & (start + TILE_INPUTS + place < num_inputs)[None, :]
        ahead = tl.load(at, mask=is_read, other=0.0)
        total += weights.to(tl.float32) * values
        weights = ahead
        if GATE is not None:
            ahead = tl.load(at + second_half, mask=is_read, other=0.0)
            other_total += others.to(tl.float32) * values
            others = ahead
    result = _scaled(tl.sum(total, 1), scales, bias, output, num_outputs)
    if GATE is not None:
        result = activate(result, GATE) * _scaled(
            tl.sum(other_total, 1), scales, bias, num_outputs + output, 2 * num_outputs
        )
    tl.store(out + output, result.to(out.dtype.element_ty), mask=output < num_outputs)


@triton.jit
def _scaled(total, scales, bias, output, num_outputs):
    if scales is not None:
        total *= tl.load(scales + output, mask=output < num_outputs, other=0.0)
    if bias is not None:
        total += tl.load(bias + output, mask=output < num_outputs, other=0.0).to(tl.float32)
    return total


@triton.jit(do_not_specialize=["num_rows", "tiles_per_split"])
def multiply_tiles(
    x,
    weight,
    scales,
    bias,
    out,
    sums,
    num_rows,
    num_outputs,
    num_inputs,
    tiles_per_split,
    x_stride,
    TILE_ROWS: tl.constexpr,
    TILE_OUTPUTS: tl.constexpr,
    TILE_INPUTS: tl.constexpr,
    ARE_WEIGHTS_LEFT: tl.constexpr,
):
    """Grid (tiles of outputs, tiles of rows, splits): TILE_ROWS rows of x, TILE_OUTPUTS outputs, a part of the inputs,
    by tensor cores in x's type, the weights being the left factor or the right one. With one split the product goes to
    out [N, outputs]; else its parts go to `sums` [splits, N, outputs] float32, without scale and bias. `sums` or `bias`
    is None where there is none."""
    output = tl.program_id(0) * TILE_OUTPUTS + tl.arange(0, TILE_OUTPUTS)
    row = tl.program_id(1) * TILE_ROWS + tl.arange(0, TILE_ROWS)
    split = tl.program_id(2)
    is_output, is_row = output < num_outputs, row < num_rows
    weight_at = weight + output.to(tl.int64)[:, None] * num_inputs
    x_at = x + row.to(tl.int64)[:, None] * x_stride
    if ARE_WEIGHTS_LEFT:
        total = tl.zeros([TILE_OUTPUTS, TILE_ROWS], tl.float32)
    else:
        total = tl.zeros([TILE_ROWS, TILE_OUTPUTS], tl.float32)
    # The compiler sees that tiles begin at multiples of their size, and reads 16 bytes at once.
    begin = split * tiles_per_split * TILE_INPUTS
    for start in range(begin, tl.minimum(begin + tiles_per_split * TILE_INPUTS, num_inputs), TILE_INPUTS):
        place = start + tl.arange(0, TILE_INPUTS)
        is_input = place < num_inputs
        rows = tl.load(x_at + place[None, :], mask=is_row[:, None] & is_input[None, :], other=0.0)
        weights = tl.load(weight_at + place[None, :], mask=is_output[:, None] & is_input[None, :], other=0.0)
        weights = weights.to(rows.dtype)
        if ARE_WEIGHTS_LEFT:
            total += tl.dot(weights, tl.trans(rows), input_precision="ieee")
        else:
            total += tl.dot(rows, tl.trans(weights), input_precision="ieee")
    if ARE_WEIGHTS_LEFT:
        total = tl.trans(total)
    is_there = is_row[:, None] & is_output[None, :]
    at = row.to(tl.int64)[:, None] * num_outputs + output[None, :]
    if sums is None:
        total = total * tl.load(scales + output, mask=is_output, other=0.0)[None, :]
        if bias is not None:
            total += tl.load(bias + output, mask=is_output, other=0.0).to(tl.float32)[None, :]
        tl.store(out + at, total.to(out.dtype.element_ty), mask=is_there)
    else:
        tl.store(sums + split.to(tl.int64) * num_rows * num_outputs + at, total, mask=is_there)


@triton.jit(do_not_specialize=["num_rows", "num_splits"])
def add_splits(
    sums,
    scales,
    bias,
    out,
    num_rows,
    num_splits,
    num_outputs,
    TILE_OUTPUTS: tl.constexpr,
):
    """Grid (tiles of outputs, rows): parts are added in their order."""
    output = tl.program_id(0) * TILE_OUTPUTS + tl.arange(0, TILE_OUTPUTS)
    row = tl.program_id(1).to(tl.int64)
    is_output = output < num_outputs
    total = tl.zeros([TILE_OUTPUTS], tl.float32)
    for split in range(num_splits):
        at = (split * num_rows + row) * num_outputs + output
        total += tl.load(sums + at, mask=is_output, other=0.0)
    total = total * tl.load(scales + output, mask=is_output, other=0.0)
    if bias is not None:
        total += tl.load(bias + output, mask=is_output, other=0.0).to(tl.float32)
    tl.store(out + row * num_outputs + output, total.to(out.dtype.element_ty), mask=is_output)
