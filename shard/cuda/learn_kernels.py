"""What a step teaches a drafter, in Triton's language: the same as TorchDrafting.learn
(shard/speculation/drafting.py).

Owns the sums over sequences, each of which a program makes alone, so that they come out the same every time. Where
nobody was asked the step teaches nothing, and what was pending is forgotten already. Integers are int64.
"""

import triton
import triton.language as tl

from shard.cuda.count_kernels import count_drafts
from shard.cuda.early import begin_with_inputs

# Numbers that are forgotten at once.
TILE_FORGOTTEN = tl.constexpr(1024)


@triton.jit
def _add(above, below, prior, place, exists, new_above, new_below, KEPT: tl.constexpr, WEIGHT: tl.constexpr):
    """What is forgotten is replaced by the prior."""
    old_above = tl.load(above + place, mask=exists, other=0.0)
    old_below = tl.load(below + place, mask=exists, other=0.0)
    believed = tl.load(prior + place, mask=exists, other=0.0)
    tl.store(above + place, old_above + (1 - KEPT) * (believed - old_above) + new_above, mask=exists)
    tl.store(below + place, old_below + (1 - KEPT) * (WEIGHT - old_below) + new_below, mask=exists)


@triton.jit
def _learn_of_lookups(
    slots,
    tokens,
    emitted,
    token_stride,
    emitted_stride,
    num_decoding,
    guesses,
    matches,
    above,
    below,
    prior,
    own_right,
    own_said,
    num_slots,
    KEPT: tl.constexpr,
    WEIGHT: tl.constexpr,
    OWN_KEPT: tl.constexpr,
    OWN_WEIGHT: tl.constexpr,
    DEPTH: tl.constexpr,
    MATCHES: tl.constexpr,
    PADDED_DEPTH: tl.constexpr,
    PADDED_MATCHES: tl.constexpr,
    TILE: tl.constexpr,
):
    """As LookupCalibration.observe; then no match is pending."""
    ahead = tl.arange(0, PADDED_DEPTH)[None, :]
    length = tl.arange(0, PADDED_MATCHES)
    right = tl.zeros([PADDED_MATCHES, PADDED_DEPTH], tl.float32)
    tested = tl.zeros([PADDED_MATCHES, PADDED_DEPTH], tl.float32)
    for start in range(0, num_decoding, TILE):
        sequence = start + tl.arange(0, TILE)
        exists = sequence < num_decoding
        slot = tl.load(slots + sequence, mask=exists, other=0)
        match = tl.load(matches + slot, mask=exists, other=0)
        known = tl.load(emitted + sequence * emitted_stride, mask=exists & (match > 0), other=0)
        is_known = ahead < tl.minimum(known, DEPTH)[:, None]
        token = tl.load(tokens + sequence[:, None] * token_stride + ahead, mask=is_known, other=0)
        guess = tl.load(guesses + slot[:, None] * DEPTH + ahead, mask=is_known, other=0)
        # A token counts where those before it were right.
        first_wrong = tl.min(tl.where(is_known & (guess != token), ahead, PADDED_DEPTH), 1)
        is_tested = is_known & (ahead <= first_wrong[:, None])
        is_right = is_known & (ahead < first_wrong[:, None])
        is_of = match[:, None] == length[None, :]
        right += tl.sum((is_of[:, :, None] & is_right[:, None, :]).to(tl.float32), 0)
        tested += tl.sum((is_of[:, :, None] & is_tested[:, None, :]).to(tl.float32), 0)

        is_first = known > 0
        first = match * DEPTH
        said = tl.load(above + first, mask=is_first, other=0.0) / tl.load(below + first, mask=is_first, other=1.0)
        old_right = tl.load(own_right + slot, mask=is_first, other=0.0)
        old_said = tl.load(own_said + slot, mask=is_first, other=0.0)
        came_true = (first_wrong > 0).to(tl.float32)
        tl.store(own_right + slot, OWN_WEIGHT + (old_right - OWN_WEIGHT) * OWN_KEPT + came_true, mask=is_first)
        tl.store(own_said + slot, OWN_WEIGHT + (old_said - OWN_WEIGHT) * OWN_KEPT + said, mask=is_first)
    # Before anything of it is written all threads have read it.
    tl.debug_barrier()
    place = length[:, None] * DEPTH + ahead
    _add(above, below, prior, place, (length[:, None] < MATCHES) & (ahead < DEPTH), right, tested, KEPT, WEIGHT)
    for start in range(0, num_slots, TILE_FORGOTTEN):
        slot = start + tl.arange(0, TILE_FORGOTTEN)
        tl.store(matches + slot, tl.zeros([TILE_FORGOTTEN], tl.int64), mask=slot < num_slots)


@triton.jit
def _learn_of_heads(
    slots,
    tokens,
    emitted,
    token_stride,
    emitted_stride,
    num_decoding,
    said_ids,
    said,
    above,
    below,
    prior,
    num_slots,
    KEPT: tl.constexpr,
    WEIGHT: tl.constexpr,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    PADDED_SAID: tl.constexpr,
    TILE: tl.constexpr,
):
    """As HeadCalibration.observe; then no candidate is pending."""
    place = tl.arange(0, PADDED_SAID)
    head = (place // WIDTH)[None, :]
    is_place = place < HEADS * WIDTH
    right = tl.zeros([PADDED_SAID], tl.float32)
    expected = tl.zeros([PADDED_SAID], tl.float32)
    for start in range(0, num_decoding, TILE):
        sequence = start + tl.arange(0, TILE)
        exists = sequence < num_decoding
        slot = tl.load(slots + sequence, mask=exists, other=0)
        known = tl.load(emitted + sequence * emitted_stride, mask=exists, other=0)
        is_known = is_place[None, :] & (head < known[:, None])
        token = tl.load(tokens + sequence[:, None] * token_stride + head, mask=is_known, other=0)
        said_at = slot[:, None] * (HEADS * WIDTH) + place[None, :]
        candidate = tl.load(said_ids + said_at, mask=is_known, other=0)
        right += tl.sum((is_known & (candidate == token)).to(tl.float32), 0)
        expected += tl.sum(tl.load(said + said_at, mask=is_known, other=0.0), 0)
    _add(above, below, prior, place, is_place, right, expected, KEPT, WEIGHT)
    # Before anything of it is written all threads have read it.
    tl.debug_barrier()
    num_said = num_slots * HEADS * WIDTH
    for start in range(0, num_said, TILE_FORGOTTEN):
        said_at = start + tl.arange(0, TILE_FORGOTTEN)
        tl.store(said_ids + said_at, tl.full([TILE_FORGOTTEN], -1, tl.int64), mask=said_at < num_said)
        tl.store(said + said_at, tl.zeros([TILE_FORGOTTEN], tl.float32), mask=said_at < num_said)


# Where the inputs begin says nothing: they may be parts of others.
@triton.jit(
    do_not_specialize=[
        "slots",
        "tokens",
        "emitted",
        "on_path",
        "path",
        "accepted",
        "checked",
        "token_stride",
        "emitted_stride",
        "path_stride",
        "accepted_stride",
        "checked_stride",
        "num_decoding",
        "num_slots",
        "num_rows",
    ]
)
def learn(
    slots,
    tokens,
    emitted,
    on_path,
    path,
    accepted,
    checked,
    token_stride,
    emitted_stride,
    path_stride,
    accepted_stride,
    checked_stride,
    guesses,
    matches,
    asked_lookup,
    lookup_above,
    lookup_below,
    lookup_prior,
    own_right,
    own_said,
    said_ids,
    said,
    asked_heads,
    head_above,
    head_below,
    head_prior,
    methods,
    counts,
    num_decoding,
    num_slots,
    num_rows,
    KEPT: tl.constexpr,
    WEIGHT: tl.constexpr,
    OWN_KEPT: tl.constexpr,
    OWN_WEIGHT: tl.constexpr,
    DEPTH: tl.constexpr,
    MATCHES: tl.constexpr,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    NUM_METHODS: tl.constexpr,
    SIZE: tl.constexpr,
    PADDED_DEPTH: tl.constexpr,
    PADDED_MATCHES: tl.constexpr,
    PADDED_SAID: tl.constexpr,
    PADDED_PATH: tl.constexpr,
    PADDED_CELLS: tl.constexpr,
    PADDED_ROWS: tl.constexpr,
    TILE: tl.constexpr,
    IS_EARLY: tl.constexpr,
):
    """Grid (2 + sequences whose drafts are counted). The first program learns of lookups (None: there are none), the
    second of heads (likewise), the others count, into counts [S, 2, NUM_METHODS, DEPTH].

    Of the step slots [S], tokens and path [S, …] and the numbers `emitted`, `accepted` and `checked` [S], with strides,
    and on_path [S, num_rows, num_rows] uint8; of all slots what is pending; sums of lookups [MATCHES, DEPTH], own_right
    and own_said [slots], sums of heads [HEADS, WIDTH]. TILE sequences are
    learned of at once.
    """
    begin_with_inputs(IS_EARLY)
    program = tl.program_id(0)
    if program == 0:
        if matches is not None and tl.load(asked_lookup) > 0:
            _learn_of_lookups(
                slots,
                tokens,
                emitted,
                token_stride,
                emitted_stride,
                num_decoding,
                guesses,
                matches,
                lookup_above,
                lookup_below,
                lookup_prior,
                own_right,
                own_said,
                num_slots,
                KEPT,
                WEIGHT,
                OWN_KEPT,
                OWN_WEIGHT,
                DEPTH,
                MATCHES,
                PADDED_DEPTH,
                PADDED_MATCHES,
                TILE,
            )
            tl.store(asked_lookup, 0.0)
    elif program == 1:
        if said is not None and tl.load(asked_heads) > 0:
            _learn_of_heads(
                slots,
                tokens,
                emitted,
                token_stride,
                emitted_stride,
                num_decoding,
                said_ids,
                said,
                head_above,
                head_below,
                head_prior,
                num_slots,
                KEPT,
                WEIGHT,
                HEADS,
                WIDTH,
                PADDED_SAID,
                TILE,
            )
            tl.store(asked_heads, 0.0)
    else:
        if counts is not None:
            count_drafts(
                (program - 2).to(tl.int64),
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
                NUM_METHODS,
                DEPTH,
                SIZE,
                PADDED_PATH,
                PADDED_CELLS,
                PADDED_ROWS,
            )
