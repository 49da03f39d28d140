"""Products with weights of 8 bits, in Triton's language. Own the arithmetic; must not know how the work is cut.

A program takes TILE_ROWS rows of x times TILE_OUTPUTS outputs, over a part of the inputs. Weights are widened to x's
type in registers, which is exact, and sums are float32, so that each product is rounded once, after its scale.
"""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["num_rows", "inputs_per_split"])
def multiply_tiles(
    x,
    weight,
    scales,
    bias,
    out,
    sums,
    num_rows,
    inputs_per_split,
    x_stride,
    NUM_OUTPUTS: tl.constexpr,
    NUM_INPUTS: tl.constexpr,
    TILE_ROWS: tl.constexpr,
    TILE_OUTPUTS: tl.constexpr,
    TILE_INPUTS: tl.constexpr,
):
    """Grid (tiles of outputs, tiles of rows, splits). With one split the product goes to out [N, outputs]; else its
    parts go to `sums` [splits, N, outputs] float32, without scale and bias. `sums` or `bias` is None where there is
    none."""
    output = tl.program_id(0) * TILE_OUTPUTS + tl.arange(0, TILE_OUTPUTS)
    row = tl.program_id(1) * TILE_ROWS + tl.arange(0, TILE_ROWS)
    split = tl.program_id(2)
    is_output, is_row = output < NUM_OUTPUTS, row < num_rows
    weight_at = weight + output.to(tl.int64)[:, None] * NUM_INPUTS
    x_at = x + row.to(tl.int64)[:, None] * x_stride
    total = tl.zeros([TILE_ROWS, TILE_OUTPUTS], tl.float32)
    begin = split * inputs_per_split
    for start in range(begin, tl.minimum(begin + inputs_per_split, NUM_INPUTS), TILE_INPUTS):
        place = start + tl.arange(0, TILE_INPUTS)
        is_input = place < NUM_INPUTS
        rows = tl.load(x_at + place[None, :], mask=is_row[:, None] & is_input[None, :], other=0.0)
        weights = tl.load(weight_at + place[None, :], mask=is_output[:, None] & is_input[None, :], other=0.0)
        total += tl.dot(rows, tl.trans(weights.to(rows.dtype)), input_precision="ieee")
    is_there = is_row[:, None] & is_output[None, :]
    at = row.to(tl.int64)[:, None] * NUM_OUTPUTS + output[None, :]
    if sums is None:
        total = total * tl.load(scales + output, mask=is_output, other=0.0)[None, :]
        if bias is not None:
            total += tl.load(bias + output, mask=is_output, other=0.0).to(tl.float32)[None, :]
        tl.store(out + at, total.to(out.dtype.element_ty), mask=is_there)
    else:
        tl.store(sums + split.to(tl.int64) * num_rows * NUM_OUTPUTS + at, total, mask=is_there)


@triton.jit(do_not_specialize=["num_rows", "num_splits"])
def add_splits(
    sums,
    scales,
    bias,
    out,
    num_rows,
    num_splits,
    NUM_OUTPUTS: tl.constexpr,
    TILE_OUTPUTS: tl.constexpr,
):
    """Grid (tiles of outputs, rows): parts are added in their order."""
    output = tl.program_id(0) * TILE_OUTPUTS + tl.arange(0, TILE_OUTPUTS)
    row = tl.program_id(1).to(tl.int64)
    is_output = output < NUM_OUTPUTS
    total = tl.zeros([TILE_OUTPUTS], tl.float32)
    for split in range(num_splits):
        at = (split * num_rows + row) * NUM_OUTPUTS + output
        total += tl.load(sums + at, mask=is_output, other=0.0)
    total = total * tl.load(scales + output, mask=is_output, other=0.0)
    if bias is not None:
        total += tl.load(bias + output, mask=is_output, other=0.0).to(tl.float32)
    tl.store(out + row * NUM_OUTPUTS + output, total.to(out.dtype.element_ty), mask=is_output)
