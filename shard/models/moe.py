"""Owns the sparse mixture of experts (arXiv 2401.04088): which experts a row takes, and running only those.

Every rank holds a part of the width of every expert, as of any MLP, so ranks do equal work whatever is chosen, and one
all-reduce ends the block. All ranks choose alike: they see the same rows and hold the same router.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shard.distributed import TPGroup
from shard.layers.linear import RowParallelLinear
from shard.layers.quantize import Quantization
from shard.layers.sharded import Module, Piece, ShardedModule
from shard.model_config import ModelConfig
from shard.models.blocks import MLP
from shard.partition import whole


class Router(ShardedModule):
    """Rows [N, hidden] -> weights [N, top_k], which add up to one, and experts [N, top_k], int64.

    Computed in float32, or float64 in float64: the choice is discrete and rounding must not make it.
    """

    weight: Tensor

    def __init__(self, config: ModelConfig, *, dtype: torch.dtype) -> None:
        super().__init__()
        self.top_k = config.num_experts_per_token
        self._wide = torch.float64 if dtype == torch.float64 else torch.float32
        self.declare("weight", (Piece((config.num_experts, config.hidden_size), 0, whole(config.num_experts)),), dtype)

    def finish(self, quantize: Quantization | None = None) -> None:
        self.fill("weight", self.weight.to(self._wide))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        weights, experts = F.linear(x.to(self._wide), self.weight).softmax(-1).topk(self.top_k, dim=-1)
        return weights / weights.sum(-1, keepdim=True), experts


class UnsummedLinear(RowParallelLinear):
    """An input-sharded matrix whose outputs are summed over the ranks later, with those of other experts."""

    def forward(self, x: Tensor) -> Tensor:
        return self.product(x)


class Expert(MLP):
    """down(silu(gate(x)) * up(x)), this rank's part of the sum."""

    down = UnsummedLinear


class SparseMoE(Module):
    """[N, hidden] -> [N, hidden]: the weighted sum of the experts that the router takes for each row."""

    def __init__(self, config: ModelConfig, *, group: TPGroup, dtype: torch.dtype) -> None:
        super().__init__()
        self.group = group
        self.router = Router(config, dtype=dtype)
        self.experts = nn.ModuleList(Expert(config, group=group, dtype=dtype) for _ in range(config.num_experts))

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.router(x)
        order = chosen.view(-1).argsort(stable=True)  # places in `chosen`, flattened, expert by expert
        rows = order // chosen.shape[1]
        shares = weights.view(-1, 1).index_select(0, order)
        # The one value a layer needs on the host: how many rows each expert has, without which all would run.
        counts = chosen.view(-1).bincount(minlength=len(self.experts)).tolist()
        # summed wide, so that neither the order of the experts nor their number is rounded into 16 bits
        total = torch.zeros(x.shape, dtype=shares.dtype, device=x.device)
        for expert, mine, share in zip(self.experts, rows.split(counts), shares.split(counts), strict=True):
            if mine.numel():
                total.index_add_(0, mine, expert(x.index_select(0, mine)) * share)
        return self.group.all_reduce(total.to(x.dtype))
