"""The attention kernels, in Triton's language. Own the arithmetic; must not know how many programs there are, or why.

The rows of a span and the query heads of a kv group are folded into the rows of one product, so that they share each
pass over the group's keys: folded row f is head f % GROUP of row f // GROUP. A program takes TILE_ROWS of them over a
part of the context, tile by tile, with a running maximum and sum (FlashAttention-2, arXiv 2307.08691); where a context
is split, the parts are merged by their log-sum-exps (Flash-Decoding). Logarithms are of base 2 throughout.

    place of a key   | below the first row's position, of step spans   | the step's own rows       |
                     | up to the row's own position, of direct spans   | (none of direct spans)    |
    read from        | pages                                           | qkv                       |
    visible          | all, but for the window                         | those on the row's way    |

What is not there is not read: places without a token may hold anything. Where pages hold numbers of 8 bits, the
step's own rows are rounded to them too: a token is the same whether the drafts before it were committed or are checked
with it.
"""

import triton
import triton.language as tl

from shard.cuda.commit_kernels import as_kept
from shard.cuda.early import begin_with_inputs

# Step rows whose keys are taken at once: a larger tile would take the registers that the pages' tiles need.
TILE_OWN = tl.constexpr(16)


@triton.jit
def _absorb(
    queries,
    keys,
    values,
    visible,
    best,
    total,
    mixed,
    SCALE: tl.constexpr,
    CAP: tl.constexpr,
):
    """Each row's running maximum, sum and mix of values with one more tile of keys; SCALE, CAP as in `attend_spans`."""
    scores = tl.dot(queries, tl.trans(keys), input_precision="ieee") * SCALE
    if CAP is not None:
        # tanh in a form that does not overflow
        shrunk = tl.exp2(-tl.abs(scores))
        bounded = CAP * (1 - shrunk) / (1 + shrunk)
        scores = tl.where(scores < 0, -bounded, bounded)
    scores = tl.where(visible, scores, float("-inf"))
    higher = tl.maximum(best, tl.max(scores, 1))
    # A row that has seen nothing yet stays at -inf, and what is subtracted from it finite.
    reference = tl.where(higher == float("-inf"), 0.0, higher)
    weights = tl.exp2(scores - reference[:, None])
    kept = tl.exp2(best - reference)
    total = total * kept + tl.sum(weights, 1)
    mixed = mixed * kept[:, None] + tl.dot(weights.to(values.dtype), values, input_precision="ieee")
    return higher, total, mixed


@triton.jit
def _heads(qkv, heads_at, d, is_read, cos, sin, rotation_at, DIM: tl.constexpr):
    """Heads that begin at `heads_at`, rotated if they are to be: by cos and sin that begin at `rotation_at`."""
    heads = tl.load(qkv + heads_at + d[None, :], mask=is_read, other=0.0)
    if cos is not None:
        # Halves change places; see shard.layers.rotary.
        swapped = tl.load(qkv + heads_at + ((d + DIM // 2) % DIM)[None, :], mask=is_read, other=0.0)
        c = tl.load(cos + rotation_at + d[None, :], mask=is_read, other=0.0).to(tl.float32)
        s = tl.load(sin + rotation_at + d[None, :], mask=is_read, other=0.0).to(tl.float32)
        heads = (heads.to(tl.float32) * c + swapped.to(tl.float32) * s).to(heads.dtype)
    return heads


@triton.jit(
    do_not_specialize=[
        "first_span",
        "table_stride",
        "ancestors_stride",
        "most_rows",
        "num_splits",
    ],
    # Those of prompts begin anywhere: a kernel for each alignment would be compiled while some request waits.
    do_not_specialize_on_alignment=["positions"],
)
def attend_spans(
    qkv,
    pages,
    step_rows,
    out,
    mixes,
    log_sums,
    rows,
    tables,
    positions,
    ancestors,
    cos,
    sin,
    first_span,
    table_stride,
    ancestors_stride,
    most_rows,
    num_splits,
    qkv_stride,
    values_offset,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    IS_STEP: tl.constexpr,
    WINDOW: tl.constexpr,
    SCALE: tl.constexpr,
    CAP: tl.constexpr,
    TILE_ROWS: tl.constexpr,
    TILE_KEYS: tl.constexpr,
    PADDED_DIM: tl.constexpr,
    IS_EARLY: tl.constexpr,
):
    """Grid (tiles of folded rows, kv heads * splits, spans).

    With cos and sin [N, DIM] queries and keys of qkv are rotated as they are read. `values_offset` is from a key to its
    value in the pages. A score is SCALE * product, or with a CAP CAP * tanh(SCALE * product * ln(2) / 2): constants are
    folded into the two. With one split, results go to `out` and `mixes` and `log_sums` are None; else they are
    [splits, spans * most_rows, heads, dim] and the same without dim.
    """
    begin_with_inputs(IS_EARLY)
    tile = tl.program_id(0)
    kv_head = tl.program_id(1) % KV_HEADS
    split = tl.program_id(1) // KV_HEADS
    span = tl.program_id(2)
    heads = KV_HEADS * GROUP
    entry = rows + (first_span + span) * 3
    num_rows = tl.load(entry + 1)
    if tile * TILE_ROWS >= num_rows * GROUP:
        return
    first_row = tl.load(entry).to(tl.int64)
    blocks = tables + tl.load(entry + 2).to(tl.int64) * table_stride

    folded = tile * TILE_ROWS + tl.arange(0, TILE_ROWS)
    row = folded // GROUP
    head = kv_head * GROUP + folded % GROUP
    exists = row < num_rows
    d = tl.arange(0, PADDED_DIM)
    in_dim = (d < DIM)[None, :]
    queries_at = ((first_row + row) * qkv_stride + head * DIM)[:, None]
    queries = _heads(qkv, queries_at, d, exists[:, None] & in_dim, cos, sin, (first_row + row)[:, None] * DIM, DIM)
    position = tl.load(positions + first_row + row, mask=exists, other=0).to(tl.int32)
    root = tl.load(positions + first_row).to(tl.int32)

    # The pages' part: up to `end`, and from where the window of the tile's first row begins.
    if IS_STEP:
        lowest = root
        end = root
        last_visible = tl.full([TILE_ROWS], 0, tl.int32) + root - 1
    else:
        lowest = root + tile * TILE_ROWS // GROUP
        end = root + tl.minimum(num_rows, (tile * TILE_ROWS + TILE_ROWS - 1) // GROUP + 1)
        last_visible = position
    begin = 0
    if WINDOW is not None:
        begin = tl.maximum(0, lowest - WINDOW + 1) // TILE_KEYS * TILE_KEYS
    tiles_per_split = tl.cdiv(tl.cdiv(tl.maximum(0, end - begin), TILE_KEYS), num_splits)
    begin = begin + split * tiles_per_split * TILE_KEYS
    end = tl.minimum(end, begin + tiles_per_split * TILE_KEYS)

    best = tl.full([TILE_ROWS], float("-inf"), tl.float32)
    total = tl.zeros([TILE_ROWS], tl.float32)
    mixed = tl.zeros([TILE_ROWS, PADDED_DIM], tl.float32)
    for start in range(begin, end, TILE_KEYS):
        place = start + tl.arange(0, TILE_KEYS)
        is_there = place < end
        block = tl.load(blocks + place // BLOCK_SIZE, mask=is_there, other=0).to(tl.int64)
        keys_at = ((block * KV_HEADS + kv_head) * BLOCK_SIZE + place % BLOCK_SIZE)[:, None] * DIM + d[None, :]
        is_read = is_there[:, None] & in_dim
        keys = tl.load(pages + keys_at, mask=is_read, other=0.0).to(queries.dtype)
        values = tl.load(pages + values_offset + keys_at, mask=is_read, other=0.0).to(queries.dtype)
        visible = is_there[None, :] & (place[None, :] <= last_visible[:, None])
        if WINDOW is not None:
            visible = visible & (place[None, :] > position[:, None] - WINDOW)
        best, total, mixed = _absorb(queries, keys, values, visible, best, total, mixed, SCALE, CAP)

    if IS_STEP:
        # One split takes the step's own rows, and its first tile stores what it read of them.
        own_rows = tl.where(split == 0, num_rows, 0)
        # Not in a pipeline: these rows are few and were just written, and the pages' tiles need the room.
        for start in tl.range(0, own_rows, TILE_OWN, num_stages=1):
            other = start + tl.arange(0, TILE_OWN)
            is_there = other < num_rows
            is_read = is_there[:, None] & in_dim
            own_at = ((first_row + other) * qkv_stride + (heads + kv_head) * DIM)[:, None]
            keys = _heads(qkv, own_at, d, is_read, cos, sin, (first_row + other)[:, None] * DIM, DIM)
            values = tl.load(qkv + KV_HEADS * DIM + own_at + d[None, :], mask=is_read, other=0.0)
            if values.dtype == tl.float16:
                # What is hidden is multiplied by zero, which makes no number of what overflowed, here and in the pages.
                keys = tl.where(tl.abs(keys) < float("inf"), keys, 0.0).to(keys.dtype)
                values = tl.where(tl.abs(values) < float("inf"), values, 0.0).to(values.dtype)
            stored_at = ((first_row + other) * (2 * KV_HEADS * DIM) + kv_head * DIM)[:, None] + d[None, :]
            tl.store(step_rows + stored_at, keys, mask=is_read & (tile == 0))
            tl.store(step_rows + KV_HEADS * DIM + stored_at, values, mask=is_read & (tile == 0))
            keys = as_kept(keys, pages).to(queries.dtype)
            values = as_kept(values, pages).to(queries.dtype)
            way = ancestors + span * ancestors_stride + row[:, None] * most_rows + other[None, :]
            visible = tl.load(way, mask=exists[:, None] & is_there[None, :], other=0) != 0
            if WINDOW is not None:
                own_position = tl.load(positions + first_row + other, mask=is_there, other=0).to(tl.int32)
                visible = visible & (own_position[None, :] > position[:, None] - WINDOW)
            best, total, mixed = _absorb(queries, keys, values, visible, best, total, mixed, SCALE, CAP)

    # Zero where a split showed a row nothing.
    divisor = tl.where(total > 0, total, 1.0)
    result = mixed / divisor[:, None]
    if mixes is None:
        out_at = ((first_row + row) * heads + head)[:, None] * DIM + d[None, :]
        tl.store(out + out_at, result.to(out.dtype.element_ty), mask=exists[:, None] & in_dim)
    else:
        place_in_part = ((split * tl.num_programs(2) + span).to(tl.int64) * most_rows + row) * heads + head
        tl.store(mixes + place_in_part[:, None] * DIM + d[None, :], result, mask=exists[:, None] & in_dim)
        tl.store(log_sums + place_in_part, best + tl.log2(divisor), mask=exists)


@triton.jit(do_not_specialize=["first_span", "most_rows", "num_splits"])
def merge_splits(
    mixes,
    log_sums,
    out,
    rows,
    first_span,
    most_rows,
    num_splits,
    DIM: tl.constexpr,
    SPLITS: tl.constexpr,
    PADDED_DIM: tl.constexpr,
    IS_EARLY: tl.constexpr,
):
    """Grid (rows, heads, spans): the mean of a row's parts, weighted by what they sum up."""
    begin_with_inputs(IS_EARLY)
    row = tl.program_id(0)
    head = tl.program_id(1)
    span = tl.program_id(2)
    heads = tl.num_programs(1)
    entry = rows + (first_span + span) * 3
    if row >= tl.load(entry + 1):
        return
    first_row = tl.load(entry).to(tl.int64)
    split = tl.arange(0, SPLITS)
    part = ((split * tl.num_programs(2) + span).to(tl.int64) * most_rows + row) * heads + head
    log_sum = tl.load(log_sums + part, mask=split < num_splits, other=float("-inf"))
    weight = tl.exp2(log_sum - tl.max(log_sum, 0))
    d = tl.arange(0, PADDED_DIM)
    is_read = (split < num_splits)[:, None] & (d < DIM)[None, :]
    mix = tl.load(mixes + part[:, None] * DIM + d[None, :], mask=is_read, other=0.0)
    result = tl.sum(weight[:, None] * mix, 0) / tl.sum(weight, 0)
    tl.store(out + ((first_row + row) * heads + head) * DIM + d, result.to(out.dtype.element_ty), mask=d < DIM)
