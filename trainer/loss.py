"""The loss of the heads over a vocabulary that is too large to compute whole for every row.

A step computes the logits of some columns only: the common tokens and the step's own targets for certain, and a
uniform sample of the rest whose weight makes the sum over the vocabulary right on average (importance sampling, Bengio
and Senécal, 2008). On a GPU all columns are certain, and it is the plain cross-entropy.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

# Head i counts this often, as in the original recipe (Cai et al., 2024).
HEAD_DECAY = 0.8


@dataclass(frozen=True, slots=True)
class Columns:
    """`token_ids`: [C] of the columns. `log_weights`: [C], added to logits. `column_of`: [V], -1 where not certain."""

    token_ids: Tensor
    log_weights: Tensor
    column_of: Tensor


def choose_columns(
    targets: Tensor, common: Tensor, *, vocab_size: int, num_sampled: int, generator: torch.Generator
) -> Columns:
    """`common` and `targets` are certain; `num_sampled` of all other tokens stand for all of them. CPU tensors."""
    certain = torch.zeros(vocab_size, dtype=torch.bool)
    certain[common] = True
    certain[targets] = True
    rest = (~certain).nonzero().squeeze(1)
    sample = rest[torch.randperm(len(rest), generator=generator)[:num_sampled]]
    kept = certain.nonzero().squeeze(1)
    log_weights = torch.zeros(len(kept) + len(sample))
    if len(sample):
        log_weights[len(kept) :] = math.log(len(rest) / len(sample))
    column_of = torch.full((vocab_size,), -1)
    column_of[kept] = torch.arange(len(kept))
    return Columns(torch.cat([kept, sample]), log_weights, column_of)


def head_loss(logits: Tensor, targets: Tensor, teacher: Tensor | None, soft_labels: float) -> Tensor:
    """Sum over rows of the cross-entropy. `logits` [N, C] weighted, `targets` [N] columns, `teacher` [N, C]
    probabilities of the base at the same place, which make `soft_labels` of the target (None where that is 0).
    """
    log_probabilities = F.log_softmax(logits.float(), dim=-1)
    loss = -log_probabilities.gather(1, targets[:, None]).sum() * (1 - soft_labels)
    if teacher is not None:
        loss = loss - soft_labels * (teacher * log_probabilities).sum()
    return loss
