"""Owns the numbers of a quantized weight: one scale for each output, numbers of 8 bits. Knows no kernel.

Weights alone are quantized, symmetrically, as torchao's int8 and float8 weight-only do: activations, norms, the
embedding, keys and values keep their dtype. (A product on a CPU may round its inputs to 16 bits: shard/cpu/integers.h.)
int8 are integers; fp8 are floating-point numbers of four bits of exponent and three of mantissa (e4m3, arXiv
2209.05433).
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from shard.distributed import TPGroup

Quantization = Literal["int8", "fp8"]

_DTYPES = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}
# The greatest number of each.
_MOST = {"int8": 127.0, "fp8": 448.0}
_ROWS_AT_ONCE = 1024


class QuantizedWeight(NamedTuple):
    """`values` [out, in] of 8 bits times `scales` [out] float32 are about the weight."""

    values: Tensor
    scales: Tensor


def quantized(weight: Tensor, quantization: Quantization, group: TPGroup | None = None) -> QuantizedWeight:
    """The nearest numbers to a weight [out, in]. `group`: its ranks hold other inputs of the same outputs, and take the
    scales of the whole weight, so that a model's numbers do not depend on how many ranks hold it."""
    largest = weight.abs().amax(dim=1).float() if weight.shape[1] else torch.zeros(len(weight), device=weight.device)
    if group is not None and group.size > 1:
        largest = group.all_gather(largest).amax(dim=0)
    most = _MOST[quantization]
    scales = largest.clamp_min(torch.finfo(torch.float32).tiny * most) / most
    values = torch.empty(weight.shape, dtype=_DTYPES[quantization], device=weight.device)
    # A slice at a time: the weight in float32 would be twice what is there already.
    for start in range(0, len(weight), _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        exact = (weight[rows].float() / scales[rows, None]).clamp_(-most, most)
        values[rows] = (exact.round_() if quantization == "int8" else exact).to(values.dtype)
    return QuantizedWeight(values, scales)
