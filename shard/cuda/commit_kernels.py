"""How keys and values become pages, in Triton's language."""

import triton
import triton.language as tl

from shard.cuda.early import begin_with_inputs

# The greatest number of e4m3.
MOST_FP8 = tl.constexpr(448.0)


@triton.jit
def as_kept(kv, pages):
    """As pages hold it; what is too large would become no number."""
    if kv.dtype == pages.dtype.element_ty:
        return kv
    return tl.clamp(kv.to(tl.float32), -MOST_FP8, MOST_FP8).to(pages.dtype.element_ty)


# Where the inputs begin says nothing: they may be parts of others.
@triton.jit(
    do_not_specialize=["first_rows", "path", "num_kept", "physical_slots", "path_stride", "num_kept_stride"],
)
def commit_paths(
    steps,
    pages,
    first_rows,
    path,
    num_kept,
    physical_slots,
    path_stride,
    num_kept_stride,
    steps_stride,
    pages_stride,
    KV_HEADS: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    PADDED_HEADS: tl.constexpr,
    PADDED_DIM: tl.constexpr,
    IS_EARLY: tl.constexpr,
):
    """Grid (places on a path, spans, layers). Of each span the first num_kept rows of its path go from the step rows
    [row, K or V, KV_HEADS, DIM] to their places in the pages [K or V, block, KV_HEADS, BLOCK_SIZE, DIM]; both are the
    first layer's, the next are `steps_stride` and `pages_stride` behind. Rows on a path are numbered from the span's
    first; integers are int64."""
    begin_with_inputs(IS_EARLY)
    place = tl.program_id(0)
    span = tl.program_id(1).to(tl.int64)
    layer = tl.program_id(2).to(tl.int64)
    if place >= tl.load(num_kept + span * num_kept_stride):
        return
    row = tl.load(first_rows + span) + tl.load(path + span * path_stride + place)
    slot = tl.load(physical_slots + row)
    head = tl.arange(0, PADDED_HEADS)[:, None]
    d = tl.arange(0, PADDED_DIM)[None, :]
    is_there = (head < 2 * KV_HEADS) & (d < DIM)
    kv_at = steps + layer * steps_stride + row * (2 * KV_HEADS * DIM) + head * DIM + d
    kv = tl.load(kv_at, mask=is_there, other=0.0)
    page = (slot // BLOCK_SIZE * KV_HEADS + head % KV_HEADS) * BLOCK_SIZE + slot % BLOCK_SIZE
    to = pages + layer * pages_stride + head // KV_HEADS * (pages_stride // 2) + page * DIM + d
    tl.store(to, as_kept(kv, pages), mask=is_there)
