"""The best of wide rows, in Triton's language: first of parts of a row, then of what is left of them.

Own the order: the greater value is better, and of equals the lower column. What is not a number counts as -inf.
"""

import triton
import triton.language as tl

from shard.cuda.early import begin_with_inputs

# Behind every place.
NOWHERE = tl.constexpr(0x7FFFFFFF)


@triton.jit
def _first(values, place, is_left):
    """The greatest of the values that are left, and the first place that has it."""
    best = tl.max(tl.where(is_left, values, float("-inf")), 0)
    return best, tl.min(tl.where(is_left & (values == best), place, NOWHERE), 0)


@triton.jit
def _finite(peak):
    """What is subtracted from numbers that are `peak` at most: where all are -inf they stay it."""
    return tl.where(peak == float("-inf"), 0.0, peak)


@triton.jit
def best_of_parts(
    scores,
    values,
    columns,
    sums,
    num_columns,
    row_stride,
    WIDTH: tl.constexpr,
    TILE: tl.constexpr,
    IS_EARLY: tl.constexpr,
):
    """Grid (rows, parts). Of TILE columns of a row the best WIDTH, best first, to values and columns
    [rows, parts, WIDTH], and unless that is None the sum of exp(score - the part's best) to sums [rows, parts]. Places
    behind a part's last column hold -inf."""
    begin_with_inputs(IS_EARLY)
    row = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    column = part * TILE + tl.arange(0, TILE)
    is_left = column < num_columns
    score = tl.load(scores + row * row_stride + column, mask=is_left, other=float("-inf")).to(tl.float32)
    score = tl.where(score == score, score, float("-inf"))
    to = row * tl.num_programs(1) + part
    if sums is not None:
        tl.store(sums + to, tl.sum(tl.exp(score - _finite(tl.max(score, 0))), 0))
    for rank in tl.static_range(WIDTH):
        best, first = _first(score, column, is_left)
        tl.store(values + to * WIDTH + rank, best)
        tl.store(columns + to * WIDTH + rank, first)
        is_left = is_left & (column != first)


@triton.jit(do_not_specialize=["num_parts"])
def best_of_rows(
    part_values,
    part_columns,
    sums,
    values,
    columns,
    log_sums,
    num_parts,
    WIDTH: tl.constexpr,
    PARTS: tl.constexpr,
    TILE: tl.constexpr,
    IS_EARLY: tl.constexpr,
):
    """Grid (rows). Of what `best_of_parts` found the best WIDTH to values and columns [rows, WIDTH], and unless that is
    None the logarithm of the sum of exp(score) to log_sums [rows]. PARTS is num_parts or more, TILE as many times WIDTH
    or more, both powers of two.

    Equal values come in the order of their columns, and places that are no column after all that are.
    """
    begin_with_inputs(IS_EARLY)
    row = tl.program_id(0).to(tl.int64)
    place = tl.arange(0, TILE)
    is_left = place < num_parts * WIDTH
    begin = row * num_parts * WIDTH
    value = tl.load(part_values + begin + place, mask=is_left, other=float("-inf"))
    if log_sums is not None:
        part = tl.arange(0, PARTS)
        is_part = part < num_parts
        peaks = tl.load(part_values + begin + part * WIDTH, mask=is_part, other=float("-inf"))
        total = tl.load(sums + row * num_parts + part, mask=is_part, other=0.0)
        reference = _finite(tl.max(peaks, 0))
        tl.store(log_sums + row, reference + tl.log(tl.sum(total * tl.exp(peaks - reference), 0)))
    for rank in tl.static_range(WIDTH):
        best, first = _first(value, place, is_left)
        tl.store(values + row * WIDTH + rank, best.to(values.dtype.element_ty))
        tl.store(columns + row * WIDTH + rank, tl.load(part_columns + begin + first).to(tl.int64))
        is_left = is_left & (place != first)
