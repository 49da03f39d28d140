"""What follows the choice of tokens in a step, in Triton's language: which drafts are right, and tokens appended.

The same as shard/speculation/verify.py and SequenceStates.append in torch operations; integers are int64.
"""

import triton
import triton.language as tl

from shard.cuda.early import begin_with_inputs

# Stop tokens that are compared at once: all that there usually is room for.
TILE_STOPS = tl.constexpr(128)


@triton.jit
def _right_path(
    tokens,
    cells,
    drafts,
    parents,
    on_path,
    num_drafts,
    num_rows,
    PADDED_ROWS: tl.constexpr,
    PADDED_DEPTH: tl.constexpr,
):
    """Of one sequence's tree: the right rows by their depth [PADDED_DEPTH], and behind the last of them the tree's last
    row; how many of them are drafts."""
    row = tl.arange(0, PADDED_ROWS)
    is_row = row < num_rows
    is_draft = is_row & (row > 0)
    parent = tl.load(parents + row - 1, mask=is_draft, other=0)
    draft = tl.load(drafts + row - 1, mask=is_draft, other=0)
    cell = tl.load(cells + parent, mask=is_draft, other=0)
    target = tl.load(tokens + cell, mask=is_draft, other=0)
    follows = ((row == 0) | (is_draft & (row <= num_drafts) & (draft == target))).to(tl.int32)
    is_pair = is_row[:, None] & is_row[None, :]
    way = tl.load(on_path + row[:, None] * num_rows + row[None, :], mask=is_pair, other=0) != 0
    # A row is right if all on its way follow the one before.
    is_right = is_row & (tl.min(tl.where(way, follows[None, :], 1), 1) != 0)
    row_depth = tl.sum(way.to(tl.int32), 1) - 1
    depth = tl.arange(0, PADDED_DEPTH)
    # Of equal siblings the first is taken.
    path = tl.min(tl.where(is_right[:, None] & (row_depth[:, None] == depth[None, :]), row[:, None], num_rows), 0)
    return tl.minimum(path, num_rows - 1), tl.sum((path < num_rows).to(tl.int32), 0) - 1


# Where the inputs begin says nothing: they may be parts of others.
@triton.jit(
    do_not_specialize=[
        "slots",
        "tokens",
        "cells",
        "drafts",
        "parents",
        "on_path",
        "num_drafts",
        "num_rows",
        "most_emitted",
        "length",
        "num_stops",
    ]
)
def decide_sequences(
    slots,
    tokens,
    cells,
    drafts,
    parents,
    on_path,
    num_drafts,
    texts,
    num_tokens,
    max_num_tokens,
    num_pending,
    finished,
    stops,
    decided,
    num_rows,
    most_emitted,
    length,
    num_stops,
    PADDED_ROWS: tl.constexpr,
    PADDED_DEPTH: tl.constexpr,
    IS_EARLY: tl.constexpr,
):
    """Grid (sequences). Of each the slot, and of num_rows rows the cells of `tokens`, the ways on_path
    [num_rows, num_rows] uint8 (None: one row), drafts and parents [num_rows - 1] of which num_drafts count.

    Of all slots texts [length], num_tokens, max_num_tokens, num_pending, finished uint8 and stops [num_stops]. A
    slot that has ended may come more than once: all write what was there. `decided` is as
    `shard.cuda.interface.Decide` says.
    """
    begin_with_inputs(IS_EARLY)
    sequence = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + sequence)
    num_checked = tl.load(num_drafts + sequence)
    before = tl.load(num_tokens + slot)
    room = tl.maximum(tl.load(max_num_tokens + slot) - before, 0)
    own_cells = cells + sequence * num_rows
    depth = tl.arange(0, PADDED_DEPTH)
    if on_path is None:
        path = tl.zeros([PADDED_DEPTH], tl.int32)
        num_right = tl.full([], 0, tl.int32)
    else:
        path, num_right = _right_path(
            tokens,
            own_cells,
            drafts + sequence * (num_rows - 1),
            parents + sequence * (num_rows - 1),
            on_path + sequence * num_rows * num_rows,
            num_checked,
            num_rows,
            PADDED_ROWS,
            PADDED_DEPTH,
        )
    token = tl.load(tokens + tl.load(own_cells + path))

    first_stop = tl.full([], PADDED_DEPTH, tl.int32)
    for start in range(0, num_stops, TILE_STOPS):
        i = start + tl.arange(0, TILE_STOPS)
        stop = tl.load(stops + slot * num_stops + i, mask=i < num_stops, other=-1)
        is_stop = token[:, None] == stop[None, :]
        first_stop = tl.minimum(first_stop, tl.min(tl.min(tl.where(is_stop, depth[:, None], PADDED_DEPTH), 1), 0))
    is_present = num_checked >= 0
    num_emitted = tl.where(is_present, tl.minimum(tl.minimum(num_right, first_stop) + 1, room), 0)
    is_last = is_present & ((first_stop < num_emitted) | (num_emitted == room))

    # Before anything is written all threads have read it.
    tl.debug_barrier()
    tl.store(texts + slot * length + before + depth, token, mask=depth < num_emitted)
    tl.store(num_tokens + slot, before + num_emitted)
    tl.store(num_pending + slot, 0)
    tl.store(finished + slot, 1, mask=is_last)
    to = decided + sequence * (2 * most_emitted + 5)
    tl.store(to + depth, token, mask=depth < most_emitted)
    tl.store(to + most_emitted + depth, path.to(tl.int64), mask=depth < most_emitted)
    tl.store(to + 2 * most_emitted, num_emitted)
    tl.store(to + 2 * most_emitted + 1, tl.minimum(num_right, num_emitted))
    tl.store(to + 2 * most_emitted + 2, num_checked)
    tl.store(to + 2 * most_emitted + 3, is_last.to(tl.int64))
    tl.store(to + 2 * most_emitted + 4, before + num_emitted)
