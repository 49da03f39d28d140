"""Which drafts are right, how many tokens a step emits and which sequences it ends: one pure function.

Must not know how a target or a draft came about, nor of slots and caches.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Verdict(NamedTuple):
    """What S sequences emit: token_ids [S, R] and path [S, R], the row after which the model put each token, of which
    the first num_emitted [S] count; num_accepted [S] of them were drafts. All int64; finished [S] bool: this step ended
    the sequence."""

    token_ids: Tensor
    path: Tensor
    num_emitted: Tensor
    num_accepted: Tensor
    finished: Tensor


def ancestors(parents: Tensor) -> Tensor:
    """Which rows lie on the way from the root to each row, itself included: parents [S, N] -> [S, N + 1, N + 1] bool.

    Row i + 1 is draft i; its parent is an earlier row. By pointer doubling: after t rounds a row knows the next 2^t
    rows above it.
    """
    num_sequences, num_rows = parents.shape[0], parents.shape[1] + 1
    above = torch.nn.functional.pad(parents, (1, 0))
    seen = torch.eye(num_rows, dtype=torch.bool, device=parents.device).expand(num_sequences, -1, -1)
    for _ in range((num_rows - 1).bit_length()):
        seen = seen | seen.gather(1, above[:, :, None].expand(-1, -1, num_rows))
        above = above.gather(1, above)
    return seen


def verify(
    target: Tensor,
    drafts: Tensor,
    parents: Tensor,
    on_path: Tensor | None,
    *,
    num_drafts: Tensor,
    num_tokens: Tensor,
    max_num_tokens: Tensor,
    stop_token_ids: Tensor,
) -> Verdict:
    """Verdict on trees of drafts; integers are int64.

    `target` [S, R] is the token that the model puts after each row, `drafts` and `parents` [S, R - 1] the inputs of the
    rows after the first and the rows they follow, `on_path` [S, R, R] the ancestors of each row (None where R is 1). Of
    each sequence [S]: `num_drafts` that count (-1: absent, emits nothing), `num_tokens` committed before,
    `max_num_tokens` its limit; `stop_token_ids` [S, E] is padded with -1.

    Row 0's input is the last committed token, so its target is right. A draft is right if it is the target of its
    parent and its parent is right: then everything before its row is what the model itself would have said, and so is
    its own target. The right rows are one path from the root (of equal siblings the first is taken, they stand for the
    same text); with a drafts on it, its targets are a + 1 true tokens, whatever the drafts were. The sequence keeps
    what its limit leaves room for and nothing after its first stop token:

        emitted  = min(a + 1, max_num_tokens - num_tokens, 1 + index of the first stop token)
        accepted = min(a, emitted)
    """
    num_rows = target.shape[1]
    rows = torch.arange(num_rows, device=target.device)
    present = num_drafts >= 0
    if on_path is None:
        path, num_right, token_ids = torch.zeros_like(target), torch.zeros_like(num_drafts), target
    else:
        is_right = (drafts == target.gather(1, parents)) & (rows[:-1] < num_drafts[:, None])
        is_right = torch.nn.functional.pad(is_right, (1, 0), value=True)
        is_right = (is_right[:, None, :] | ~on_path).all(2)
        depth = on_path.sum(2) - 1
        # By depth, the first right row; behind the path's end a row that does not exist.
        candidates = torch.where(is_right, rows, num_rows)
        path = torch.full_like(target, num_rows).scatter_reduce(1, depth, candidates, "amin")
        num_right = (path < num_rows).sum(1) - 1
        path = path.clamp_max(num_rows - 1)
        token_ids = target.gather(1, path)

    is_stop = (token_ids[:, :, None] == stop_token_ids[:, None, :]).any(2)
    first_stop = torch.where(is_stop, rows, num_rows).amin(1)
    room = (max_num_tokens - num_tokens).clamp_min(0)
    num_emitted = torch.minimum(torch.minimum(num_right, first_stop) + 1, room) * present
    finished = present & ((first_stop < num_emitted) | (num_emitted == room))
    return Verdict(token_ids, path, num_emitted, torch.minimum(num_right, num_emitted), finished)
