"""Owns the gated activation of an MLP."""

import torch.nn.functional as F
from torch import Tensor

from shard.cpu.kernels import kernels_for


def silu_mul(gate_up: Tensor) -> Tensor:
    """silu(gate) * up for gate_up [N, 2 * width], gate first -> [N, width]."""
    if kernels := kernels_for(gate_up.dtype, gate_up.device):
        return kernels.silu_mul(gate_up)
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate).mul_(up)
