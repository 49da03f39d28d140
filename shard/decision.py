"""What rank 0 decides in a step and tells the others: tokens, and the drafts of the next step.

Every rank applies exactly this; no rank trusts its own arithmetic for a token.
"""

from itertools import accumulate, pairwise
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from shard.distributed import TPGroup


class Decision(NamedTuple):
    """All int64. Of token_ids and path [S, D] the first num_emitted [S] count (see Verdict); finished is 0 or 1."""

    token_ids: Tensor
    path: Tensor
    num_emitted: Tensor
    num_accepted: Tensor
    num_checked: Tensor
    finished: Tensor

    @staticmethod
    def shapes(num_sequences: int, depth: int) -> list[tuple[int, ...]]:
        return [(num_sequences, depth)] * 2 + [(num_sequences,)] * 4


def send(group: TPGroup, tensors: list[Tensor]) -> None:
    """Rank 0: int64 tensors in one broadcast."""
    if group.size > 1:
        group.broadcast(torch.cat([tensor.flatten() for tensor in tensors]))


def receive(group: TPGroup, shapes: list[tuple[int, ...]], device: torch.device) -> list[Tensor]:
    """The other ranks: what `send` was given, whose shapes they know."""
    ends = list(accumulate((prod(shape) for shape in shapes), initial=0))
    packed = group.broadcast(torch.empty(ends[-1], dtype=torch.int64, device=device))
    return [packed[start:end].view(shape) for (start, end), shape in zip(pairwise(ends), shapes, strict=True)]
