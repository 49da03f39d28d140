"""Owns the gated activations of an MLP: gate_up [N, 2 * width], gate first -> [N, width]."""

import torch.nn.functional as F
from torch import Tensor

from shard.cpu.kernels import kernels_for
from shard.cuda.kernels import rows_for
from shard.gate import Gate


def gate_mul(gate_up: Tensor, gate: Gate) -> Tensor:
    """act(gate) * up."""
    if gate == "silu" and (kernels := kernels_for(gate_up.dtype, gate_up.device)):
        return kernels.silu_mul(gate_up)
    if rows := rows_for(gate_up.dtype, gate_up.device):
        return rows.gate_mul(gate_up, gate)
    x, up = gate_up.chunk(2, dim=-1)
    return (F.silu(x) if gate == "silu" else F.gelu(x, approximate="tanh")).mul_(up)
