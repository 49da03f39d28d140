"""Medusa heads as they are trained (Cai et al., 2024, arXiv:2401.10774): one process, float32 parameters.

Head i sees the base's hidden state at t and predicts token t + 2 + i. Knows nothing of data, loss or files.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class MedusaHead(nn.Module):
    """x <- x + silu(W x + b) for each layer, then a projection: its own [V, h] in v1, the base's LM head in v2.

    W and b start at zero and a projection of its own as the base's: training starts from the base's next token.
    """

    def __init__(self, lm_head: Tensor, *, num_layers: int, own_projection: bool) -> None:
        super().__init__()
        hidden_size = lm_head.shape[1]
        self.layers = nn.ModuleList(nn.Linear(hidden_size, hidden_size) for _ in range(num_layers))
        for parameter in self.layers.parameters():
            nn.init.zeros_(parameter)
        # The clone has a gradient and its own memory; the base's head stays frozen and shared by all heads.
        self.projection = nn.Parameter(lm_head.float().clone()) if own_projection else lm_head
        self.to(lm_head.device)

    def forward(self, hidden: Tensor) -> Tensor:
        """[N, h] -> [N, h]: what the projection is given."""
        for layer in self.layers:
            hidden = hidden + F.silu(layer(hidden))
        return hidden


def make_heads(lm_head: Tensor, *, version: str, num_heads: int, num_layers: int) -> nn.ModuleList:
    """`version` is "v1" or "v2"."""
    own = version == "v1"
    return nn.ModuleList(MedusaHead(lm_head, num_layers=num_layers, own_projection=own) for _ in range(num_heads))


def head_tensors(heads: nn.ModuleList) -> dict[str, Tensor]:
    """By their names in `medusa_lm_head.safetensors`: {i}.{j}.linear.weight and .bias, in v1 also {i}.{L}.weight."""
    tensors: dict[str, Tensor] = {}
    for i, head in enumerate(heads):
        assert isinstance(head, MedusaHead)
        for j, layer in enumerate(head.layers):
            assert isinstance(layer, nn.Linear)
            tensors[f"{i}.{j}.linear.weight"] = layer.weight.detach()
            tensors[f"{i}.{j}.linear.bias"] = layer.bias.detach()
        if isinstance(head.projection, nn.Parameter):
            tensors[f"{i}.{len(head.layers)}.weight"] = head.projection.detach()
    return tensors


def to_bfloat16(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.to("cpu", torch.bfloat16).contiguous() for name, tensor in tensors.items()}
