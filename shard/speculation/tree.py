"""The draft tree of a step: of all that the proposers say, the drafts with the highest probability of being right.

Pure tensor arithmetic over all sequences at once, on their device, with no look at values on the host. Must not know
where probabilities come from.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from shard.speculation import Candidates, Continuation, DraftTree, Method

# A child is less probable than its parent by at least this much in logarithms, so that sorting never puts it first.
_LESS = 1e-3
_LEAST_PROBABILITY = 1e-9


class MarkedTree(NamedTuple):
    """A tree; the Method [S, N] of each draft and the logarithm of its probability, which falls from draft to draft."""

    tree: DraftTree
    methods: Tensor
    log_p: Tensor


def chain(
    continuation: Continuation, probabilities: Tensor, *, size: int, max_drafts: Tensor, least_probability: float
) -> MarkedTree:
    """The tree of a lookup alone: as much of it as has at least `least_probability` of being right.

    `probabilities` [S, K] are each given that the path so far is right; `max_drafts` [S] bounds drafts and depth, which
    are the same. `size`, at least K, is that of the tree's tensors.
    """
    token_ids = torch.nn.functional.pad(continuation.token_ids, (0, size - continuation.token_ids.shape[1]))
    path_probabilities = probabilities.cumprod(1)
    num_worth = (path_probabilities >= least_probability).sum(1)
    num_drafts = torch.where(continuation.match_length > 0, torch.minimum(max_drafts.clamp_min(0), num_worth), 0)
    parents = torch.arange(token_ids.shape[1], device=token_ids.device).expand_as(token_ids)
    log_p = torch.nn.functional.pad(path_probabilities.log(), (0, size - probabilities.shape[1]), value=-math.inf)
    return MarkedTree(DraftTree(token_ids, parents, num_drafts), torch.full_like(token_ids, Method.NGRAM), log_p)


class _Level(NamedTuple):
    """Drafts of one depth, [S, M] each: `parent` is an index into the level above; whether a head says it, and whether
    it goes on with the continuation."""

    log_p: Tensor
    token_ids: Tensor
    parent: Tensor
    is_heads: Tensor
    is_continuation: Tensor


def best_tree(
    candidates: Candidates,
    continuation: Continuation | None,
    continuation_probabilities: Tensor | None,
    *,
    size: int,
    max_drafts: Tensor,
    max_depth: Tensor,
    least_probability: float,
) -> MarkedTree:
    """The at most `size` most probable drafts, as a tree of at most `max_drafts` [S] nodes and depth `max_depth` [S].

    Heads guess a place each and know nothing of the tokens between, so the probability of a path is the product of its
    candidates' `probabilities` (here calibrated, [S, H, W]; 0: there is no candidate). A continuation is one path with
    probabilities [S, H], each given that the path so far is right. Where it agrees with a head the two are one draft;
    where not, it is believed first and the heads share what is left. Drafts below `least_probability` are left out.
    """
    least_log_p = math.log(least_probability) if least_probability > 0 else -math.inf
    log_p = torch.zeros_like(candidates.probabilities[:, 0, :1])
    follows = torch.zeros_like(log_p, dtype=torch.bool)
    if continuation is not None:
        follows = continuation.match_length[:, None] > 0
    levels: list[_Level] = []
    for depth in range(candidates.token_ids.shape[1]):
        guess = None
        if continuation is not None and continuation_probabilities is not None:
            believed = continuation_probabilities[:, depth, None].clamp(_LEAST_PROBABILITY, 1)
            guess = continuation.token_ids[:, depth, None], believed
        level = _extend(
            log_p,
            follows,
            candidates.token_ids[:, depth],
            candidates.probabilities[:, depth].clamp_max(1),
            guess,
            size=size,
            least_log_p=least_log_p,
        )
        log_p, follows = level.log_p, level.is_continuation
        levels.append(level)
    return _select(levels, size=size, max_drafts=max_drafts, max_depth=max_depth)


def _log(probabilities: Tensor) -> Tensor:
    """-inf where there is no candidate; whoever is one is not impossible."""
    return torch.where(probabilities > 0, probabilities.clamp_min(_LEAST_PROBABILITY).log(), -math.inf)


def _extend(
    above: Tensor,
    follows: Tensor,
    token_ids: Tensor,
    probabilities: Tensor,
    guess: tuple[Tensor, Tensor] | None,
    *,
    size: int,
    least_log_p: float,
) -> _Level:
    """The `size` best children of nodes with log_p `above` [S, M], by one head's candidates [S, W]; and by a
    continuation's next token, with its probability [S, 1] each, of the one node that `follows` [S, M] it so far."""
    num_sequences, width = token_ids.shape
    log_p = (_log(probabilities) - _LESS)[:, None, :]
    is_guess: Tensor | None = None
    if guess is not None:
        next_token, believed = guess
        agrees = (token_ids == next_token) & (probabilities > 0)
        by_head = (probabilities * agrees).sum(1, keepdim=True)
        # The mixture of both in which the guess is as likely as the more confident of them says.
        mixed = torch.maximum(believed, by_head)
        rest = ((1 - mixed) / (1 - by_head).clamp_min(_LEAST_PROBABILITY)).clamp(_LEAST_PROBABILITY, 1)
        along = torch.where(probabilities > 0, torch.where(agrees, mixed, probabilities * rest).log(), -math.inf)
        alone = torch.where(agrees.any(1, keepdim=True), -math.inf, mixed.log())
        # Columns: the head's candidates, then the guess where no candidate is the same.
        token_ids, on_path = torch.cat([token_ids, next_token], 1), torch.cat([along, alone], 1) - _LESS
        off_path = torch.nn.functional.pad(log_p, (0, 1), value=-math.inf)
        log_p = torch.where(follows[:, :, None], on_path[:, None, :], off_path)
        is_guess = torch.nn.functional.pad(agrees, (0, 1), value=True)
    log_p = above[:, :, None] + log_p
    log_p = torch.where(log_p < least_log_p, -math.inf, log_p).view(num_sequences, -1)
    best, index = log_p.topk(min(size, log_p.shape[1]), dim=1)
    column, parent = index % token_ids.shape[1], index // token_ids.shape[1]
    is_heads = column < width
    is_continuation = torch.zeros_like(is_heads)
    if is_guess is not None:
        is_continuation = follows.gather(1, parent) & is_guess.gather(1, column)
    return _Level(best, token_ids.gather(1, column), parent, is_heads, is_continuation)


def _select(levels: list[_Level], *, size: int, max_drafts: Tensor, max_depth: Tensor) -> MarkedTree:
    """The most probable drafts over all levels. A parent is always more probable than its children, so it is there."""
    widths = [level.log_p.shape[1] for level in levels]
    device = max_drafts.device
    offsets = [sum(widths[:i]) for i in range(len(levels))]
    depth = torch.cat([torch.full((w,), i + 1, device=device) for i, w in enumerate(widths)])
    log_p = torch.cat([level.log_p for level in levels], 1)
    by_head = torch.cat([level.is_heads for level in levels], 1)
    by_lookup = torch.cat([level.is_continuation for level in levels], 1)
    method = Method.MEDUSA * by_head.long() + Method.NGRAM * by_lookup.long()
    token_ids = torch.cat([level.token_ids for level in levels], 1)
    # -1 is the root.
    above = torch.cat(
        [torch.full_like(levels[0].parent, -1)]
        + [level.parent + offset for level, offset in zip(levels[1:], offsets[:-1], strict=True)],
        1,
    )
    log_p = torch.where(depth <= max_depth[:, None], log_p, -math.inf)
    ordered, order = log_p.sort(dim=1, descending=True, stable=True)
    ordered, chosen = ordered[:, :size], order[:, :size]
    place = torch.empty_like(order).scatter_(1, order, torch.arange(order.shape[1], device=device).expand_as(order))
    parent = above.gather(1, chosen)
    parent_row = torch.where(parent < 0, 0, place.gather(1, parent.clamp_min(0)) + 1)
    num_drafts = torch.minimum((ordered > -math.inf).sum(1), max_drafts.clamp_min(0))
    tree = DraftTree(token_ids.gather(1, chosen), parent_row.clamp_max(size), num_drafts)
    missing = size - chosen.shape[1]
    if missing > 0:
        pad = torch.nn.functional.pad
        tree = DraftTree(pad(tree.token_ids, (0, missing)), pad(tree.parents, (0, missing)), num_drafts)
        ordered = pad(ordered, (0, missing), value=-math.inf)
        return MarkedTree(tree, pad(method.gather(1, chosen), (0, missing)), ordered)
    return MarkedTree(tree, method.gather(1, chosen), ordered)
