"""Owns root-mean-square normalisation. Up to 32 bits it accumulates in float32, float64 stays float64."""

import torch
import torch.nn.functional as F
from torch import Tensor

from shard.cpu.kernels import kernels_for
from shard.cuda.kernels import rows_for
from shard.layers.quantize import Quantization
from shard.layers.sharded import Piece, ShardedModule
from shard.partition import whole


class RMSNorm(ShardedModule):
    """x / sqrt(mean(x²) + eps) * weight over the last dimension."""

    weight: Tensor

    def __init__(self, size: int, *, eps: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.size = size
        self.eps = eps
        self._wide = torch.float64 if dtype == torch.float64 else torch.float32
        self._eps = torch.tensor([eps], dtype=self._wide)
        self.declare("weight", (Piece((size,), 0, whole(size)),), dtype)

    @property
    def factor(self) -> Tensor:
        """What the normalised values are multiplied with, [size]."""
        return self.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.of_sum(x, None)

    def of_sum(self, x: Tensor, added: Tensor | None) -> Tensor:
        """The same of x + added, which x becomes."""
        if x.dim() == 2 and (rows := rows_for(x.dtype, x.device)):
            return rows.rms_norm(x, self.factor, self.eps, added)
        return self._normalised(x if added is None else x.add_(added))

    def _normalised(self, x: Tensor) -> Tensor:
        if x.dim() == 2 and (kernels := kernels_for(x.dtype, x.device)):
            return kernels.rms_norm(x, self.weight, self.eps)
        if x.device.type != "cpu":
            return F.rms_norm(x, (self.size,), self.weight, self.eps)
        return self._on_cpu(x, self.weight)

    def _on_cpu(self, x: Tensor, weight: Tensor) -> Tensor:
        # On CPU the library's own is a dozen operations; these are half as many and round alike: 1 ms of a step of the
        # default model. The scale is wide, and so is what it is multiplied with.
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=self._wide)
        scale = torch.addcmul(self._eps, norm, norm, value=1 / self.size).rsqrt_()
        return (x * scale).mul_(weight).to(x.dtype)


class OffsetRMSNorm(RMSNorm):
    """The norm of the gemma families: the file holds w, the factor is 1 + w.

    The factor stays wide and multiplies before the one rounding: in 16 bits 1 + w would lose most of w.
    """

    def finish(self, quantize: Quantization | None = None) -> None:
        self._factor = 1 + self.weight.to(self._wide)
        self.drop("weight")

    @property
    def factor(self) -> Tensor:
        return self._factor

    def _normalised(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu":
            return F.rms_norm(x.to(self._wide), (self.size,), self._factor, self.eps).to(x.dtype)
        return self._on_cpu(x, self._factor)
