"""Which drafts are right, how many tokens a step emits and which sequences it ends: one pure function.

Must not know how a target or a draft came about, nor of slots and caches.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Verdict(NamedTuple):
    """Of each sequence [S]: tokens emitted, drafts among them (int64), and whether this step ended it (bool)."""

    num_emitted: Tensor
    num_accepted: Tensor
    finished: Tensor


def verify(
    target: Tensor,
    drafts: Tensor,
    *,
    num_drafts: Tensor,
    num_tokens: Tensor,
    max_num_tokens: Tensor,
    stop_token_ids: Tensor,
) -> Verdict:
    """Verdict on chains of drafts; all tensors int64.

    `target` [S, R] is the token that the model puts after each row's input, `drafts` [S, R - 1] the inputs of the rows
    after the first. Of each sequence [S]: `num_drafts` that count (-1: absent, emits nothing), `num_tokens` committed
    before, `max_num_tokens` its limit; `stop_token_ids` [S, E] is padded with -1.

    Row 0's input is the last committed token, so t[0] is right. Row r's input is d[r-1]; t[r] is the true token there
    if all inputs up to it are, that is if d[i] = t[i] for all i < r. With a = the longest prefix in which drafts equal
    targets, t[0..a] are the true tokens: a drafts and the bonus token, whatever the drafts were. Of those a + 1 the
    sequence keeps what its limit leaves room for and nothing after its first stop token:

        emitted  = min(a + 1, max_num_tokens - num_tokens, 1 + index of the first stop token in t)
        accepted = min(a, emitted)
    """
    num_rows = target.shape[1]
    rows = torch.arange(num_rows, device=target.device)
    present = num_drafts >= 0

    is_right = (target[:, :-1] == drafts) & (rows[:-1] < num_drafts[:, None])
    num_right = is_right.long().cumprod(1).sum(1)
    is_stop = (target[:, :, None] == stop_token_ids[:, None, :]).any(2)
    first_stop = torch.where(is_stop, rows, num_rows).amin(1)

    room = (max_num_tokens - num_tokens).clamp_min(0)
    num_emitted = torch.minimum(torch.minimum(num_right, first_stop) + 1, room) * present
    finished = present & ((first_stop < num_emitted) | (num_emitted == room))
    return Verdict(num_emitted, torch.minimum(num_right, num_emitted), finished)
