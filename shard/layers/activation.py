"""Owns the gated activations of an MLP: gate_up [N, 2 * width], gate first -> [N, width]."""

import torch.nn.functional as F
from torch import Tensor

from shard.cpu.kernels import kernels_for


def silu_mul(gate_up: Tensor) -> Tensor:
    """silu(gate) * up."""
    if kernels := kernels_for(gate_up.dtype, gate_up.device):
        return kernels.silu_mul(gate_up)
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate).mul_(up)


def gelu_tanh_mul(gate_up: Tensor) -> Tensor:
    """gelu(gate) * up, with the tanh approximation of GELU (arXiv 1606.08415, 2)."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.gelu(gate, approximate="tanh").mul_(up)
