"""Owns the numbers of a quantized weight: one scale for each output, integers of 8 bits. Knows no kernel.

Weights alone are quantized, symmetrically, as torchao's int8 weight-only does: activations, norms, the embedding, keys
and values keep their dtype.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from shard.distributed import TPGroup

Quantization = Literal["int8"]

_MOST = 127
_ROWS_AT_ONCE = 1024


class Int8Weight(NamedTuple):
    """`values` [out, in] int8 times `scales` [out] float32 is about the weight."""

    values: Tensor
    scales: Tensor


def quantized(weight: Tensor, group: TPGroup | None = None) -> Int8Weight:
    """The nearest integers, a weight [out, in]. `group`: its ranks hold other inputs of the same outputs, and take the
    scales of the whole weight, so that a model's numbers do not depend on how many ranks hold it."""
    largest = weight.abs().amax(dim=1).float() if weight.shape[1] else torch.zeros(len(weight))
    if group is not None and group.size > 1:
        largest = group.all_gather(largest).amax(dim=0)
    scales = largest.clamp_min(torch.finfo(torch.float32).tiny * _MOST) / _MOST
    values = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
    # A slice at a time: the weight in float32 would be twice what is there already.
    for start in range(0, len(weight), _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        values[rows] = (weight[rows].float() / scales[rows, None]).round_()
    return Int8Weight(values, scales)
