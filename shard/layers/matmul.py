"""Owns the choice of the matrix product and of the form in which it keeps a weight. Knows nothing of sharding.

On CPU in bfloat16 oneDNN reads a weight that was packed once about a third faster than a plain one. The packed weight
replaces the plain one, so the memory is not paid twice. Where the processor has nothing that oneDNN could use for
bfloat16, torch takes several times as long as in float32; the compiled kernel widens the weight as it reads it.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from shard.cpu.kernels import NAME, kernels_for

KernelName = Literal["onednn-packed", "drafthouse-c", "torch"]

# The number of rows that oneDNN chooses its packed layout for; other row counts stay correct.
PACK_ROWS = 4


class Product:
    """x -> x @ weight.T + bias, for x [N, in] and weight [out, in]."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.kernel = choose_kernel(weight.dtype, weight.device)
        self._bias = bias
        self._weight: Tensor = weight
        self._compiled = kernels_for(weight.dtype, weight.device) if self.kernel == NAME else None
        if self.kernel == "onednn-packed":
            self._weight = torch.ops.mkldnn._reorder_linear_weight(weight, PACK_ROWS)
        elif self._compiled:
            self._weight = weight.contiguous()

    def __call__(self, x: Tensor) -> Tensor:
        if self._compiled:
            return self._compiled.linear(x.contiguous(), self._weight, self._bias)
        if self.kernel == "torch":
            return F.linear(x, self._weight, self._bias)
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._weight, self._bias, "none", [], "")
        return out


def choose_kernel(dtype: torch.dtype, device: torch.device) -> KernelName:
    """The fastest product that is exact to the rounding of `dtype`."""
    if device.type != "cpu" or dtype != torch.bfloat16:
        return "torch"
    if torch._C._has_mkldnn and torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return "onednn-packed"
    return NAME if kernels_for(dtype, device) else "torch"
