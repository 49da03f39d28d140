"""How many drafts are worth their rows, in Triton's language: the same as DevicePrices.num_taken
(shard/speculation/prices.py) in torch operations.

Nothing is sorted: a draft's place in the order is the number of those before it, which all programs count at once, and
so is what it brings with them. Prices are packed as by DevicePrices. Integers are int64.
"""

import triton
import triton.language as tl

from shard.cuda.early import begin_with_inputs


@triton.jit
def _cost_of(count, prices, MOST: tl.constexpr, PADDED_MOST: tl.constexpr):
    """What the first `count` [M] drafts of a step cost together."""
    i = tl.arange(0, PADDED_MOST)
    first = tl.load(prices + 2 + i, mask=i < MOST, other=float("inf")).to(tl.float32)
    end = tl.load(prices + 3 + i, mask=i < MOST - 1, other=float("inf")).to(tl.float32)
    price = tl.load(prices + 2 + MOST + i, mask=i < MOST, other=0.0).to(tl.float32)
    so_many = tl.maximum(tl.minimum(end[None, :], count.to(tl.float32)[:, None]) - first[None, :], 0.0)
    return tl.sum(so_many * price[None, :], 1)


@triton.jit(do_not_specialize=["num_drafts"])
def rank_drafts(
    log_ps,
    prices,
    ranks,
    totals,
    num_drafts,
    MOST: tl.constexpr,
    PADDED_MOST: tl.constexpr,
    SIZE: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
    IS_EARLY: tl.constexpr,
):
    """Grid (trees). Of log_ps [trees, SIZE], which are num_drafts in all and -inf where there is no draft, the place of
    each in the order of all, to ranks int32, and what it and those before it bring, less what they cost, to totals
    float32. Not where there is one price: then there is nothing to choose. ROWS is SIZE or more; TILE are
    compared at once."""
    begin_with_inputs(IS_EARLY)
    if tl.load(prices) < 2:
        return
    tree = tl.program_id(0)
    row = tl.arange(0, ROWS)
    exists = row < SIZE
    place = tree * SIZE + row
    log_p = tl.load(log_ps + place, mask=exists, other=float("-inf"))
    counted = tl.zeros([ROWS, TILE], tl.int32)
    brought = tl.zeros([ROWS, TILE], tl.float32)
    for start in range(0, num_drafts, TILE):
        other = start + tl.arange(0, TILE)
        other_log_p = tl.load(log_ps + other, mask=other < num_drafts, other=float("-inf"))
        # Of those that are equally probable the first comes first.
        is_equal = (other_log_p[None, :] == log_p[:, None]) & (other[None, :] <= place[:, None])
        is_before = is_equal | (other_log_p[None, :] > log_p[:, None])
        counted += is_before.to(tl.int32)
        brought += tl.where(is_before, tl.exp(other_log_p)[None, :], 0.0)
    count = tl.sum(counted, 1)
    total = tl.sum(brought, 1) - _cost_of(count, prices, MOST, PADDED_MOST)
    tl.store(ranks + place, count - 1, mask=exists)
    tl.store(totals + place, tl.where(log_p == float("-inf"), float("-inf"), total), mask=exists)


@triton.jit(do_not_specialize=["slots", "proposing", "num_drafts"])
def take_drafts(
    slots,
    proposing,
    prices,
    ranks,
    totals,
    counts,
    num_pending,
    num_drafts,
    SIZE: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
    IS_EARLY: tl.constexpr,
):
    """Grid (trees). Of what `rank_drafts` found so many are taken that the total is most, of each tree its share: its
    part of counts [trees], and num_pending [slots]. With one price all that there are."""
    begin_with_inputs(IS_EARLY)
    tree = tl.program_id(0)
    slot = tl.load(slots + tl.load(proposing + tree))
    taken = tl.load(counts + tree)
    if tl.load(prices) >= 2:
        # Nothing brings nothing.
        most = tl.full([], 0.0, tl.float32)
        num_taken = tl.full([], 0, tl.int32)
        for start in range(0, num_drafts, TILE):
            place = start + tl.arange(0, TILE)
            total = tl.load(totals + place, mask=place < num_drafts, other=float("-inf"))
            rank = tl.load(ranks + place, mask=place < num_drafts, other=0)
            best = tl.max(total, 0)
            # Of equals the fewest.
            first = tl.min(tl.where(total == best, rank, num_drafts), 0) + 1
            is_fewer = (best == most) & (first < num_taken)
            num_taken = tl.where((best > most) | is_fewer, first, num_taken)
            most = tl.maximum(most, best)
        row = tl.arange(0, ROWS)
        own_rank = tl.load(ranks + tree * SIZE + row, mask=row < taken, other=num_drafts)
        taken = tl.sum((own_rank < num_taken).to(tl.int64), 0)
    # Before anything is written all threads have read it.
    tl.debug_barrier()
    tl.store(counts + tree, taken)
    tl.store(num_pending + slot, taken)
