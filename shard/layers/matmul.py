"""Owns the choice of the matrix product and of the form in which it keeps a weight. Knows nothing of sharding.

On CPU in bfloat16 a step of few rows takes as long as reading the weights. The compiled kernel reads them packed,
multiplies pairs of bfloat16 where that is faster (AVX-512 of AMD) and widens them on the way elsewhere, and lets all
layers be one call; many rows go to oneDNN where the processor multiplies tiles (AMX). Without a compiler oneDNN's
packed product is taken, which reads a third faster than a plain one. A packed weight replaces the plain one, so the
memory is not paid twice.

On CUDA single rows and quantized weights go to kernels in Triton, all else to the library. On CPU a quantized weight is
read in 8 bits by the compiled kernel, which makes integers of 16 bits of the inputs where the processor multiplies
integers (VNNI, shard/cpu/integers.h), and integers by torch's own product for such weights in 16 bit. Elsewhere it is
widened for every product: slow and exact, which is what float32 and float64 are for.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from shard.cpu.kernels import NAME, CpuKernels, kernels_for
from shard.cuda.kernels import NAME as TRITON
from shard.cuda.kernels import multiply_for
from shard.gate import Gate
from shard.layers.activation import gate_mul
from shard.layers.quantize import QuantizedWeight

KernelName = Literal["onednn-packed", "drafthouse-c", "drafthouse-triton", "torch", "torch-int8"]

# The number of rows that oneDNN chooses its packed layout for; other row counts stay correct.
PACK_ROWS = 4
# Numbers of 8 bits are widened to so much less, and their scales are so much more: float16 holds neither the sums of
# the ones nor the least of the others. A power of two, so nothing is rounded by it.
_LESS = 2.0**-9


class Product:
    """x -> x @ weight.T + bias, for x [N, in] and weight [out, in].

    With a gate, whose outputs are the first half, what comes out is act(first half) * second half, [N, out / 2].
    """

    def __init__(
        self,
        weight: Tensor | QuantizedWeight,
        bias: Tensor | None,
        dtype: torch.dtype | None = None,
        *,
        gate: Gate | None = None,
    ) -> None:
        """`dtype`: of x, where the weight is quantized."""
        self._gate = gate
        # These three in the form that the kernel reads; with scales where the weight is quantized.
        self.bias = bias
        self.scales: Tensor | None = None
        if isinstance(weight, QuantizedWeight):
            weight, self.scales = weight
        self.weight: Tensor = weight
        dtype, device = dtype or self.weight.dtype, self.weight.device
        self.kernel = choose_kernel(dtype, device, weights=self.weight.dtype)
        self._num_outputs = len(self.weight) // (2 if gate else 1)
        self._multiply = multiply_for(dtype, device)
        self._compiled = compiled = kernels_for(dtype, device) if self.kernel == NAME else None
        if compiled:
            arranged = compiled.packing.gated if gate else lambda outputs: outputs
            self.weight = compiled.packing.pack(arranged(self.weight))
            self.scales = None if self.scales is None else compiled.packing.pack_outputs(arranged(self.scales))
            self.bias = None if bias is None else compiled.packing.pack_outputs(arranged(bias))
        elif self.scales is not None and self.kernel != TRITON:
            self.scales = (self.scales / _LESS if self.kernel == "torch" else self.scales).to(dtype)
        elif self.kernel == "onednn-packed":
            self.weight = torch.ops.mkldnn._reorder_linear_weight(self.weight, PACK_ROWS)

    def __call__(self, x: Tensor, *, wide: bool = False) -> Tensor:
        """[N, in] -> [N, out]; `wide`: at least float32, and what is summed in it is not rounded where that is free."""
        if self._compiled:
            if not wide and self._compiled.leaves_to_tiles(len(x)):
                return self._by_tiles(self._compiled, x)
            return self._compiled.linear(
                x.contiguous(),
                self.weight,
                self.bias,
                num_outputs=self._num_outputs,
                scales=self.scales,
                gate=self._gate,
                dtype=torch.float32 if wide else torch.bfloat16,
            )
        if self._multiply:
            dtype = torch.promote_types(x.dtype, torch.float32) if wide else x.dtype
            return self._multiply(x, self.weight, self.scales, self.bias, dtype, self._gate)
        if self.scales is not None:
            out = self._quantized(x)
        elif self.kernel == "torch":
            out = F.linear(x, self.weight, self.bias)
        else:
            out = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        if self._gate:
            out = gate_mul(out, self._gate)
        return out.to(torch.promote_types(out.dtype, torch.float32)) if wide else out

    def _by_tiles(self, compiled: CpuKernels, x: Tensor) -> Tensor:
        out = x @ compiled.packing.unpacked(self.weight)[: x.shape[1]]
        # Scales and biases are float32.
        out = out if self.scales is None else out * self.scales
        out = (out if self.bias is None else out + self.bias).to(x.dtype)
        if self._gate:
            out = gate_mul(compiled.packing.ungated(out), self._gate)
        return out[:, : self._num_outputs].contiguous()

    def _quantized(self, x: Tensor) -> Tensor:
        assert self.scales is not None
        if self.kernel == "torch-int8":
            out: Tensor = torch.ops.aten._weight_int8pack_mm(x, self.weight, self.scales)
        else:
            out = F.linear(x, self.weight.to(x.dtype).mul_(_LESS)) * self.scales
        return out if self.bias is None else out + self.bias


def choose_kernel(dtype: torch.dtype, device: torch.device, *, weights: torch.dtype | None = None) -> KernelName:
    """The fastest product that is exact to the rounding of `dtype`. `weights`: their dtype, if it is another."""
    if multiply_for(dtype, device) is not None:
        return TRITON
    if weights is not None and weights != dtype:
        is_int8 = weights == torch.int8
        if is_int8 and kernels_for(dtype, device) is not None:
            return NAME
        has_product = is_int8 and device.type == "cpu" and dtype in (torch.bfloat16, torch.float16)
        return "torch-int8" if has_product else "torch"
    if device.type != "cpu" or dtype != torch.bfloat16:
        return "torch"
    if kernels_for(dtype, device) is not None:
        return NAME
    has_onednn = torch._C._has_mkldnn and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return "onednn-packed" if has_onednn else "torch"
