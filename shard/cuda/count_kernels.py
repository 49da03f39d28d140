"""What came of a tree's drafts by method and depth, in Triton's language: what the router is told.

Must not know what is learned of it. Integers are int64.
"""

import triton
import triton.language as tl


@triton.jit
def count_drafts(
    sequence,
    slots,
    on_path,
    path,
    accepted,
    checked,
    path_stride,
    accepted_stride,
    checked_stride,
    methods,
    counts,
    num_rows,
    NUM_METHODS: tl.constexpr,
    DEPTH: tl.constexpr,
    SIZE: tl.constexpr,
    PADDED_PATH: tl.constexpr,
    PADDED_CELLS: tl.constexpr,
    PADDED_ROWS: tl.constexpr,
):
    """Of one sequence's tree the drafts that were checked and those that were accepted, by method and depth."""
    slot = tl.load(slots + sequence)
    num_checked = tl.load(checked + sequence * checked_stride)
    num_accepted = tl.load(accepted + sequence * accepted_stride)
    row = tl.arange(0, PADDED_ROWS)
    is_pair = (row[:, None] < num_rows) & (row[None, :] < num_rows)
    way_at = (sequence * num_rows + row[:, None]) * num_rows + row[None, :]
    way = tl.load(on_path + way_at, mask=is_pair, other=0) != 0
    depth = tl.sum(way.to(tl.int32), 1) - 1
    is_checked = (row > 0) & (row <= num_checked)
    method = tl.load(methods + slot * SIZE + row - 1, mask=is_checked, other=1)
    place = tl.arange(0, PADDED_PATH)
    is_right = (place > 0) & (place <= num_accepted)
    right_row = tl.load(path + sequence * path_stride + place, mask=is_right, other=0)
    is_accepted = tl.sum((right_row[:, None] == row[None, :]).to(tl.int32), 0) > 0
    cell = tl.arange(0, PADDED_CELLS)
    is_in = (((method - 1) * DEPTH + depth - 1)[None, :] == cell[:, None]) & is_checked[None, :]
    to = counts + sequence * (2 * NUM_METHODS * DEPTH) + cell
    is_cell = cell < NUM_METHODS * DEPTH
    tl.store(to, tl.sum(is_in.to(tl.int64), 1), mask=is_cell)
    tl.store(to + NUM_METHODS * DEPTH, tl.sum((is_in & is_accepted[None, :]).to(tl.int64), 1), mask=is_cell)
