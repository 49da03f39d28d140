"""The draft tree of a sequence, in Triton's language: the same as `best_tree` of shard/speculation/tree.py in torch
operations, with what is to be remembered of it.

Owns the order of nodes. Trees are taken from all that may follow, the most probable one at a time: the least cost,
which is the negated logarithm of a probability and grows from parent to child, and of equals the first place. Costs are
compared as integers: the bits of floats above 0 are in their order, and a GPU finds the least integer of a warp at
once. What else is to be known of a node is in a second integer. Must not know what drafts cost. Integers are int64.

    place (22 bits) | depth (8) | is the continuation's (1)

The children of a row of the tree have places of their own, a column for each candidate and one for the guess.
"""

import triton
import triton.language as tl

from shard.cuda.early import begin_with_inputs
from shard.cuda.lookup_kernels import continuation
from shard.cuda.pending_kernels import MEDUSA, NGRAM, bounds, make_pending

# As in shard/speculation/tree.py.
LESS = tl.constexpr(1e-3)
LEAST_PROBABILITY = tl.constexpr(1e-9)

PLACE_BIT = tl.constexpr(9)
MOST_DEPTH = tl.constexpr(255)
# No node: the bits of infinity, and behind all others.
NO_COST = tl.constexpr(0x7F800000)
NOWHERE = tl.constexpr(0x7FFFFFFF)
# The greatest float32.
MOST_COST = tl.constexpr(3.4028234663852886e38)


@triton.jit
def _remember(
    asked,
    slot,
    is_asked,
    candidate_ids,
    probabilities,
    said_ids,
    said,
    head_right,
    head_said,
    ids_sequence_stride,
    ids_head_stride,
    sequence_stride,
    head_stride,
    SUREST: tl.constexpr,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    DEPTHS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """What heads say of the sequence, made pending unless it is not asked. Tokens and probabilities of being right
    [DEPTHS, COLUMNS], 0 where there is no candidate: beyond the heads only lookup reaches."""
    depth = tl.arange(0, DEPTHS)[:, None]
    column = tl.arange(0, COLUMNS)[None, :]
    is_said = (depth < HEADS) & (column < WIDTH)
    ids_at = asked * ids_sequence_stride + depth * ids_head_stride + column
    token = tl.load(candidate_ids + ids_at, mask=is_said, other=0)
    p_at = asked * sequence_stride + depth * head_stride + column
    p = tl.load(probabilities + p_at, mask=is_said, other=0.0)
    place = depth * WIDTH + column
    to = slot * (HEADS * WIDTH) + place
    tl.store(said_ids + to, tl.where(is_asked, token, -1), mask=is_said)
    tl.store(said + to, tl.where(is_asked, p, 0.0), mask=is_said)
    right = tl.load(head_right + place, mask=is_said, other=0.0)
    factor = right / tl.load(head_said + place, mask=is_said, other=1.0)
    return token, tl.minimum(p * factor, SUREST)


@triton.jit
def _cost(p):
    """Of a candidate; whoever is one is not impossible."""
    return tl.where(p > 0, -tl.log(tl.maximum(p, LEAST_PROBABILITY)), float("inf")) + LESS


@triton.jit
def _costs_along(token, p, guess, believed, has_guess, WIDTH: tl.constexpr, COLUMNS: tl.constexpr):
    """Of nodes that follow the continuation so far the costs of their children [DEPTHS, COLUMNS], and which of them
    follow it, too."""
    column = tl.arange(0, COLUMNS)[None, :]
    agrees = (token == guess[:, None]) & has_guess & (p > 0)
    by_head = tl.sum(tl.where(agrees, p, 0.0), 1)
    # The guess is as likely as the more confident of both says; the heads' other candidates share what is left.
    mixed = tl.maximum(tl.clamp(believed, LEAST_PROBABILITY, 1.0), by_head)
    rest = tl.clamp((1 - mixed) / tl.maximum(1 - by_head, LEAST_PROBABILITY), LEAST_PROBABILITY, 1.0)
    along = tl.where(agrees, mixed[:, None], p * rest[:, None])
    is_lonely = has_guess & (by_head == 0)
    is_guess = column == WIDTH
    along = tl.where(is_guess, tl.where(is_lonely, mixed, 0.0)[:, None], along)
    cost = tl.where(along > 0, -tl.log(tl.where(along > 0, along, 1.0)), float("inf")) + LESS
    return cost, agrees | (is_guess & has_guess)


@triton.jit
def _add_children(
    nodes,
    known,
    row,
    cost,
    depth,
    follows,
    costs,
    followers,
    deepest,
    dearest,
    DEPTH: tl.constexpr,
    COLUMNS: tl.constexpr,
    PLACES: tl.constexpr,
):
    """To the costs of `nodes` and what is `known` of them [PLACES] those of the children of a row of the tree, which is
    so dear and so deep; those that are too dear are left out."""
    place = tl.arange(0, PLACES)
    column = place - row * COLUMNS
    is_child = (column >= 0) & (column < COLUMNS) & (depth < deepest)
    at = depth * COLUMNS + column
    child_cost = cost + tl.load(costs + follows * (DEPTH * COLUMNS) + at, mask=is_child, other=float("inf"))
    child = (place << PLACE_BIT) | ((depth + 1) << 1)
    if followers is not None:
        child |= tl.load(followers + at, mask=is_child & (follows > 0), other=0)
    is_child = is_child & (child_cost <= dearest)
    return tl.where(is_child, child_cost.to(tl.int32, bitcast=True), nodes), tl.where(is_child, child, known)


@triton.jit(
    do_not_specialize=[
        "slots",
        "proposing",
        "max_drafts",
        "max_depth",
        "length",
        "ids_sequence_stride",
        "ids_head_stride",
        "sequence_stride",
        "head_stride",
    ]
)
def draft_trees(
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
    candidate_ids,
    probabilities,
    said_ids,
    said,
    asked_heads,
    head_right,
    head_said,
    prices,
    costs,
    followers,
    ids,
    parents,
    log_ps,
    counts,
    length,
    ids_sequence_stride,
    ids_head_stride,
    sequence_stride,
    head_stride,
    PARTS: tl.constexpr,
    LEAST_MATCH: tl.constexpr,
    SUREST_LOOKUP: tl.constexpr,
    SUREST_HEAD: tl.constexpr,
    DEPTH: tl.constexpr,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    SIZE: tl.constexpr,
    COLUMNS: tl.constexpr,
    PADDED_DEPTHS: tl.constexpr,
    PADDED_COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
    PLACES: tl.constexpr,
    IS_EARLY: tl.constexpr,
):
    """Grid (sequences that propose). As `draft_chains` (chain_kernels.py), of what heads say, candidate_ids and
    probabilities [P, HEADS, WIDTH] with strides, and unless `found` is None of lookups. COLUMNS are WIDTH, and one more
    with lookup; what is padded is so to powers of two, PLACES of nodes from SIZE * COLUMNS.

    Of heads said_ids and said [slots, HEADS, WIDTH], head_right and head_said [HEADS, WIDTH] float32. For this program
    alone: costs [P, 2, DEPTH, COLUMNS] float32 and `followers` [P, DEPTH, COLUMNS] int32.
    """
    begin_with_inputs(IS_EARLY)
    asked = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + tl.load(proposing + asked))
    most, deepest = bounds(asked, slot, max_drafts, max_depth, num_tokens, max_num_tokens, finished, SIZE)
    most, deepest = most.to(tl.int32), tl.minimum(deepest, DEPTH).to(tl.int32)
    dearest = tl.minimum(-tl.load(prices + 1).to(tl.float32), MOST_COST)
    token, p = _remember(
        asked,
        slot,
        tl.load(max_drafts + asked) > 0,
        candidate_ids,
        probabilities,
        said_ids,
        said,
        head_right,
        head_said,
        ids_sequence_stride,
        ids_head_stride,
        sequence_stride,
        head_stride,
        SUREST_HEAD,
        HEADS,
        WIDTH,
        PADDED_DEPTHS,
        PADDED_COLUMNS,
    )
    tl.store(asked_heads, 1.0)
    # Which step of the way a node is at only the loop knows: so what each costs is in memory.
    depths = tl.arange(0, PADDED_DEPTHS)[:, None]
    columns = tl.arange(0, PADDED_COLUMNS)[None, :]
    is_step = (depths < DEPTH) & (columns < COLUMNS)
    at = depths * COLUMNS + columns
    own_costs = costs + asked * (2 * DEPTH * COLUMNS)
    tl.store(own_costs + at, _cost(p), mask=is_step)
    follows = tl.full([], 0, tl.int32)
    own_followers = None
    if found is not None:
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
            PADDED_DEPTHS,
        )
        cost_along, goes_on = _costs_along(token, p, guess, believed, match > 0, WIDTH, PADDED_COLUMNS)
        own_followers = followers + asked * (DEPTH * COLUMNS)
        tl.store(own_costs + DEPTH * COLUMNS + at, cost_along, mask=is_step)
        tl.store(own_followers + at, goes_on.to(tl.int32), mask=is_step)
        follows = (match > 0).to(tl.int32)
    # What threads wrote other threads read.
    tl.debug_barrier()

    row = tl.arange(0, ROWS)
    chosen = tl.full([ROWS], 0, tl.int32)
    chosen_cost = tl.full([ROWS], 0.0, tl.float32)
    nodes = tl.full([PLACES], NO_COST, tl.int32)
    known = tl.full([PLACES], 0, tl.int32)
    # The root is taken first.
    num_made = tl.full([], 0, tl.int32)
    cost = tl.full([], 0.0, tl.float32)
    depth = tl.full([], 0, tl.int32)
    is_open = most > 0
    while is_open:
        nodes, known = _add_children(
            nodes,
            known,
            num_made,
            cost,
            depth,
            follows,
            own_costs,
            own_followers,
            deepest,
            dearest,
            DEPTH,
            COLUMNS,
            PLACES,
        )
        best_cost = tl.min(nodes, 0)
        best = tl.min(tl.where(nodes == best_cost, known, NOWHERE), 0)
        nodes = tl.where(known == best, NO_COST, nodes)
        cost = best_cost.to(tl.float32, bitcast=True)
        depth = (best >> 1) & MOST_DEPTH
        follows = best & 1
        is_there = best_cost < NO_COST
        chosen = tl.where(is_there & (row == num_made), best, chosen)
        chosen_cost = tl.where(is_there & (row == num_made), cost, chosen_cost)
        num_made += is_there.to(tl.int32)
        is_open = is_there & (num_made < most)

    place = chosen >> PLACE_BIT
    column = place % COLUMNS
    is_heads = column < WIDTH
    # Of the drafts themselves, from 0.
    level = ((chosen >> 1) & MOST_DEPTH) - 1
    is_made = row < num_made
    draft_at = candidate_ids + asked * ids_sequence_stride + level * ids_head_stride + column
    draft = tl.load(draft_at, mask=is_made & is_heads, other=0)
    if found is not None:
        draft += tl.load(guesses + slot * DEPTH + level, mask=is_made & (column == WIDTH), other=0)
    method = tl.where(is_heads, MEDUSA, 0) + tl.where((chosen & 1) > 0, NGRAM, 0)
    make_pending(
        asked,
        slot,
        draft,
        (place // COLUMNS).to(tl.int64),
        method.to(tl.int64),
        -chosen_cost,
        num_made.to(tl.int64),
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
