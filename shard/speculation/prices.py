"""How many of a step's drafts are worth their rows, which do not all cost the same.

Pure tensor arithmetic on the drafts' device, with no look at values on the host. Must not know where prices or
probabilities come from.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from shard.cpu.draft import draft_kernels
from shard.speculation import DraftPrice


def worth_most(log_p: Tensor, num_drafts: Tensor, prices: Sequence[DraftPrice]) -> Tensor:
    """How many drafts of each tree [S] are taken: over all trees so many of the most probable ones that what they
    bring, less what they cost, is most.

    `log_p` [S, N] falls from draft to draft, of which there are `num_drafts` [S]. With one price there is nothing to
    choose: whoever made the trees has left out what is less probable.
    """
    if len(prices) < 2:
        return num_drafts
    if log_p.device.type == "cpu" and (kernels := draft_kernels()):
        return kernels.worth_most(log_p, num_drafts, [p.first for p in prices], [p.probability for p in prices])
    is_draft = torch.arange(log_p.shape[1], device=log_p.device) < num_drafts[:, None]
    # Stable: of drafts of one tree that are equally probable the first comes first.
    ordered, order = torch.where(is_draft, log_p, -math.inf).view(-1).sort(descending=True, stable=True)
    gain = ordered.exp()
    for price, end in zip(prices, [*(price.first for price in prices[1:]), len(gain)], strict=True):
        gain[price.first : end] -= price.probability
    total, place = gain.cumsum(0).max(0)
    num_taken = torch.where(total > 0, place + 1, 0)
    rank = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
    return ((rank.view_as(log_p) < num_taken) & is_draft).sum(1)
