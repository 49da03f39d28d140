"""Owns the choice of the matrix product and of the form in which it keeps a weight. Knows nothing of sharding.

On CPU in bfloat16 oneDNN reads a weight that was packed once about a third faster than a plain one. The packed weight
replaces the plain one, so the memory is not paid twice.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

KernelName = Literal["onednn-packed", "torch"]

# The number of rows that oneDNN chooses its packed layout for; other row counts stay correct.
PACK_ROWS = 4


class Product:
    """x -> x @ weight.T + bias, for x [N, in] and weight [out, in]."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.kernel = choose_kernel(weight.dtype, weight.device)
        self._bias = bias
        self._weight: Tensor = weight
        if self.kernel == "onednn-packed":
            self._weight = torch.ops.mkldnn._reorder_linear_weight(weight, PACK_ROWS)

    def __call__(self, x: Tensor) -> Tensor:
        if self.kernel == "torch":
            return F.linear(x, self._weight, self._bias)
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._weight, self._bias, "none", [], "")
        return out


def choose_kernel(dtype: torch.dtype, device: torch.device) -> KernelName:
    """The fastest product that is exact to the rounding of `dtype`."""
    packable = device.type == "cpu" and dtype == torch.bfloat16 and torch._C._has_mkldnn
    if packable and torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return "onednn-packed"
    return "torch"
