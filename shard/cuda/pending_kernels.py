"""How a tree of drafts becomes a sequence's, in Triton's language: the same as SequenceStates.bound_drafts and
set_drafts in torch operations. Must not know who proposed what, nor prices. Integers are int64.
"""

import triton
import triton.language as tl

# As in shard/speculation/__init__.py.
NGRAM = tl.constexpr(1)
MEDUSA = tl.constexpr(2)


@triton.jit
def bounds(asked, slot, max_drafts, max_depth, num_tokens, max_num_tokens, finished, SIZE: tl.constexpr):
    """How many drafts, and how deep, as SequenceStates.bound_drafts."""
    # The last token that is wanted is never a draft's: a step always brings one of its own.
    room = tl.load(max_num_tokens + slot) - tl.load(num_tokens + slot) - 1
    deepest = tl.where(tl.load(finished + slot), 0, tl.minimum(tl.load(max_depth + asked), room))
    return tl.where(deepest > 0, tl.minimum(tl.load(max_drafts + asked), SIZE), 0), deepest


@triton.jit
def make_pending(
    asked,
    slot,
    draft,
    parent,
    method,
    log_p,
    num_made,
    ids,
    parents,
    log_ps,
    counts,
    pending_ids,
    pending_parents,
    methods,
    SIZE: tl.constexpr,
    ROWS: tl.constexpr,
):
    """A tree's rows [ROWS], of which the first num_made are. Of places without a draft, too: the warm-up has drafts
    checked that nobody proposed."""
    row = tl.arange(0, ROWS)
    exists = row < SIZE
    is_made = row < num_made
    draft = tl.where(is_made, draft, 0)
    parent = tl.where(is_made, parent, 0)
    at, pending_at = asked * SIZE + row, slot * SIZE + row
    tl.store(ids + at, draft, mask=exists)
    tl.store(parents + at, parent, mask=exists)
    tl.store(log_ps + at, tl.where(is_made, log_p, float("-inf")), mask=exists)
    tl.store(counts + asked, num_made)
    tl.store(pending_ids + pending_at, draft, mask=exists)
    tl.store(pending_parents + pending_at, parent, mask=exists)
    tl.store(methods + pending_at, tl.where(is_made, method, NGRAM), mask=exists)
