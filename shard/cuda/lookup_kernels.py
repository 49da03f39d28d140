"""A text's last tokens looked up in itself, in Triton's language: the same as shard/speculation/ngram.py, and what is
believed of what was found (shard/speculation/calibration.py), in torch operations.

A text is searched in parts, by as many programs: it may be long. Must not know of trees. Integers are int64.
"""

import triton
import triton.language as tl

from shard.cuda.early import begin_with_inputs


# Where a step's numbers begin follows from the shape of the step.
@triton.jit(do_not_specialize=["slots", "proposing", "max_drafts", "length"])
def look_up_parts(
    slots,
    proposing,
    max_drafts,
    texts,
    num_tokens,
    found,
    length,
    MOST_MATCH: tl.constexpr,
    TILE: tl.constexpr,
    IS_EARLY: tl.constexpr,
):
    """Grid (sequences that propose, parts). Of TILE columns of a text the longest, then last match that ends there, as
    match * length + column to `found` [P, parts] int32; 0 if there is none, or no draft is wanted.

    Of the step slots [S], proposing and max_drafts [P], of all slots texts [slots, length] and num_tokens [slots].
    """
    begin_with_inputs(IS_EARLY)
    asked = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    slot = tl.load(slots + tl.load(proposing + asked))
    is_asked = tl.load(max_drafts + asked) > 0
    last = tl.load(num_tokens + slot) - 1
    text = texts + slot * length
    column = part * TILE + tl.arange(0, TILE)
    # A match ends before the last token, and none begins before column 0.
    is_alive = is_asked & (column < last)
    match = tl.zeros([TILE], tl.int32)
    for back in tl.static_range(MOST_MATCH):
        # Whether or not those before were the same, so that all come at once.
        token = tl.load(text + column - back, mask=is_asked & (column < last) & (column >= back), other=-1)
        is_alive = is_alive & (column >= back) & (token == tl.load(text + tl.maximum(last - back, 0)))
        match += is_alive.to(tl.int32)
    best = tl.max(tl.where(match > 0, match * length + column, 0), 0)
    tl.store(found + asked * tl.num_programs(1) + part, best)


@triton.jit
def continuation(
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
    PARTS: tl.constexpr,
    LEAST_MATCH: tl.constexpr,
    SUREST: tl.constexpr,
    DEPTH: tl.constexpr,
    PADDED_DEPTH: tl.constexpr,
):
    """What was found for the sequence, made pending in guesses [slots, DEPTH] and matches [slots]. Its tokens and how
    much each is believed [PADDED_DEPTH], nothing behind the first DEPTH, and the length of the match, 0 below
    LEAST_MATCH. `right` and `tested` [matches, DEPTH], own_right and own_said [slots]."""
    part = tl.arange(0, PARTS)
    best = tl.max(tl.load(found + asked * PARTS + part), 0)
    match = best // length
    # Where it runs into the end of the text it goes on from its own start.
    start = best % length + 1
    period = tl.maximum(tl.load(num_tokens + slot) - start, 1)
    ahead = tl.arange(0, PADDED_DEPTH)
    exists = ahead < DEPTH
    source = tl.minimum(start + ahead % period, length - 1)
    guess = tl.load(texts + slot * length + source, mask=exists, other=0)
    match = tl.where(match >= LEAST_MATCH, match, 0)
    tl.store(guesses + slot * DEPTH + ahead, guess, mask=exists)
    tl.store(matches + slot, match.to(tl.int64))
    tl.store(asked_lookup, 1.0)
    at = match * DEPTH + ahead
    believed = tl.load(right + at, mask=exists, other=0.0) / tl.load(tested + at, mask=exists, other=1.0)
    own = tl.load(own_right + slot) / tl.load(own_said + slot)
    return guess, tl.minimum(tl.where(ahead == 0, believed * own, believed), SUREST), match
