"""The drafts of a sequence by lookup alone, in Triton's language: the same as `chain` of shard/speculation/tree.py in
torch operations. Integers are int64.
"""

import triton
import triton.language as tl

from shard.cuda.early import begin_with_inputs
from shard.cuda.lookup_kernels import continuation
from shard.cuda.pending_kernels import NGRAM, bounds, make_pending


@triton.jit(do_not_specialize=["slots", "proposing", "max_drafts", "max_depth", "length"])
def draft_chains(
    slots,
    proposing,
    max_drafts,
    max_depth,
    texts,
    num_tokens,
    max_num_tokens,
    finished,
    pending_ids,
    pending_parents,
    methods,
    found,
    guesses,
    matches,
    asked_lookup,
    right,
    tested,
    own_right,
    own_said,
    prices,
    ids,
    parents,
    log_ps,
    counts,
    length,
    PARTS: tl.constexpr,
    LEAST_MATCH: tl.constexpr,
    SUREST_LOOKUP: tl.constexpr,
    DEPTH: tl.constexpr,
    SIZE: tl.constexpr,
    ROWS: tl.constexpr,
    IS_EARLY: tl.constexpr,
):
    """Grid (sequences that propose). Of each what its lookup `found` (see look_up_parts), as far as it is worth it at
    the prices (see DevicePrices) and as its bounds allow; ROWS is SIZE or more.

    Of the step slots [S], proposing, max_drafts and max_depth [P]; of all slots what SequenceStates have, methods
    [slots, SIZE] and what `continuation` takes. Written are ids, parents and log_ps [P, SIZE] and counts [P].
    """
    begin_with_inputs(IS_EARLY)
    asked = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + tl.load(proposing + asked))
    most, deepest = bounds(asked, slot, max_drafts, max_depth, num_tokens, max_num_tokens, finished, SIZE)
    guess, believed, match = continuation(
        found,
        asked,
        slot,
        texts,
        num_tokens,
        guesses,
        matches,
        asked_lookup,
        right,
        tested,
        own_right,
        own_said,
        length,
        PARTS,
        LEAST_MATCH,
        SUREST_LOOKUP,
        DEPTH,
        ROWS,
    )
    row = tl.arange(0, ROWS)
    is_guess = (row < DEPTH) & (match > 0)
    log_p = tl.log(tl.cumprod(tl.where(is_guess, believed, 1.0), 0))
    is_worth = is_guess & (log_p >= tl.load(prices + 1).to(tl.float32))
    # Of a chain drafts and depth are the same.
    num_made = tl.minimum(tl.sum(is_worth.to(tl.int64), 0), tl.minimum(most, tl.maximum(deepest, 0)))
    make_pending(
        asked,
        slot,
        guess,
        row.to(tl.int64),
        NGRAM,
        log_p,
        num_made,
        ids,
        parents,
        log_ps,
        counts,
        pending_ids,
        pending_parents,
        methods,
        SIZE,
        ROWS,
    )
