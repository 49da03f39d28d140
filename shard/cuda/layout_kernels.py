"""The rows of decoding sequences and where they stand in the paged cache, in Triton's language: the same as lay_out and
device_spans of shard/layout.py in some thirty torch operations.

Owns the arithmetic; must not know of prompts.
"""

import triton
import triton.language as tl

from shard.cuda.early import begin_with_inputs


@triton.jit(
    do_not_specialize=["max_total_tokens", "tree_size", "num_blocks"],
    # Views into a step's numbers: where they begin follows from the shape of the step.
    do_not_specialize_on_alignment=["slots", "allowed", "first_rows", "num_rows"],
)
def lay_out_sequence(
    slots,
    allowed,
    first_rows,
    num_rows,
    known_ids,
    num_tokens,
    max_num_tokens,
    finished,
    pending_ids,
    pending_parents,
    num_pending,
    tables,
    token_ids,
    positions,
    physical_slots,
    num_drafts,
    drafts,
    parents,
    on_path,
    span_rows,
    max_total_tokens,
    tree_size,
    num_blocks,
    BLOCK_SIZE: tl.constexpr,
    WIDTH: tl.constexpr,
    PADDED_WIDTH: tl.constexpr,
    IS_EARLY: tl.constexpr,
):
    """Grid (sequences). Of the step [S]: slots, allowed, first_rows and num_rows, WIDTH at most, as in RowNumbers. Of
    all slots, as in SequenceStates: known_ids [slots, max_total_tokens], num_tokens, max_num_tokens and finished
    [slots] (bool), the drafts pending_ids and pending_parents [slots, tree_size], of which there are num_pending
    [slots], and tables [slots, num_blocks] int32.

    Written are, as in StepLayout, token_ids and positions [N], num_drafts [S], drafts and parents [S, WIDTH - 1] and
    on_path [S, WIDTH, WIDTH] uint8; as in DeviceSpans physical_slots [N] and span_rows [S, 3] int32. The others are
    int64.
    """
    begin_with_inputs(IS_EARLY)
    # What is read is asked for before anything is written, so that it comes at the same time.
    sequence = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + sequence)
    first = tl.load(first_rows + sequence)
    count = tl.load(num_rows + sequence)
    most = tl.load(allowed + sequence)
    row = tl.arange(0, PADDED_WIDTH)
    is_draft = (row > 0) & (row < WIDTH)
    pending_at = slot * tree_size + row - 1
    last = tl.load(num_tokens + slot) - 1
    limit = tl.load(max_num_tokens + slot)
    pending = tl.load(num_pending + slot)
    has_ended = tl.load(finished + slot)
    draft = tl.load(pending_ids + pending_at, mask=is_draft, other=0)
    parent = tl.load(pending_parents + pending_at, mask=is_draft, other=0)
    last_id = tl.load(known_ids + slot * max_total_tokens + last)

    draft_at = sequence * (WIDTH - 1) + row - 1
    tl.store(drafts + draft_at, draft, mask=is_draft)
    tl.store(parents + draft_at, parent, mask=is_draft)
    tl.store(num_drafts + sequence, tl.where(has_ended, -1, tl.minimum(pending, most)))
    tl.store(span_rows + sequence * 3, first.to(tl.int32))
    tl.store(span_rows + sequence * 3 + 1, count.to(tl.int32))
    tl.store(span_rows + sequence * 3 + 2, slot.to(tl.int32))

    # All rows walk up at once. A parent comes before its children: whom a row meets it meets in this order.
    path_at = on_path + (sequence * WIDTH + row) * WIDTH
    here = row
    depth = tl.zeros([PADDED_WIDTH], tl.int32)
    for other in range(WIDTH - 1, 0, -1):
        above = tl.load(pending_parents + slot * tree_size + other - 1).to(tl.int32)
        is_here = here == other
        tl.store(path_at + other, is_here, mask=row < WIDTH)
        depth += is_here.to(tl.int32)
        here = tl.where(is_here, above, here)
    tl.store(path_at, tl.full([PADDED_WIDTH], 1, tl.uint8), mask=row < WIDTH)

    # A sequence that ended at its limit must not run past its block table.
    position = tl.minimum(last + depth, limit - 1)
    # Whatever the limit, nothing behind the table is read.
    block = tl.minimum(position // BLOCK_SIZE, num_blocks - 1)
    exists = row < count
    block_id = tl.load(tables + slot * num_blocks + block, mask=exists, other=0).to(tl.int64)
    row_at = first + row
    tl.store(token_ids + row_at, tl.where(row == 0, last_id, draft), mask=exists)
    tl.store(positions + row_at, position, mask=exists)
    tl.store(physical_slots + row_at, block_id * BLOCK_SIZE + position % BLOCK_SIZE, mask=exists)
