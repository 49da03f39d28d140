"""Owns the sparse mixture of experts (arXiv 2401.04088): which experts a row takes, and running only those.

Every rank holds a part of the width of every expert, as of any MLP, so ranks do equal work whatever is chosen, and one
all-reduce ends the block. All ranks choose alike: they see the same rows and hold the same router.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shard.distributed import TPGroup
from shard.layers.linear import GatedLinear, RowParallelLinear
from shard.layers.quantize import Quantization
from shard.layers.sharded import Module, Piece, ShardedModule
from shard.partition import split, whole


class Router(ShardedModule):
    """Rows [N, hidden] -> weights [N, top_k], which add up to one, and experts [N, top_k], int64.

    Computed in float32, or float64 in float64: the choice is discrete and rounding must not make it.
    """

    weight: Tensor

    def __init__(self, hidden_size: int, *, num_experts: int, top_k: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.top_k = top_k
        self._wide = torch.float64 if dtype == torch.float64 else torch.float32
        self.declare("weight", (Piece((num_experts, hidden_size), 0, whole(num_experts)),), dtype)

    def finish(self, quantize: Quantization | None = None) -> None:
        self.fill("weight", self.weight.to(self._wide))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        weights, experts = F.linear(x.to(self._wide), self.weight).softmax(-1).topk(self.top_k, dim=-1)
        return weights / weights.sum(-1, keepdim=True), experts


class UnsummedLinear(RowParallelLinear):
    """An input-sharded matrix whose outputs are summed over the ranks later, with those of other experts."""

    def forward(self, x: Tensor) -> Tensor:
        return self.product(x)


class Expert(Module):
    """down(silu(gate(x)) * up(x)), this rank's part of the sum."""

    def __init__(self, hidden_size: int, intermediate_size: int, *, group: TPGroup, dtype: torch.dtype) -> None:
        super().__init__()
        self.gate_up_proj = GatedLinear(
            hidden_size, intermediate_size, gate="silu", group=group, bias=False, dtype=dtype
        )
        rows = split(intermediate_size, parts=group.size, index=group.rank)
        self.down_proj = UnsummedLinear(intermediate_size, hidden_size, rows=rows, group=group, bias=False, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(self.gate_up_proj(x))
        return out


class SparseMoE(Module):
    """[N, hidden] -> [N, hidden]: the weighted sum of the `top_k` experts that the router takes for each row."""

    def __init__(
        self,
        hidden_size: int,
        intermediate_size: int,
        *,
        num_experts: int,
        top_k: int,
        group: TPGroup,
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        self.group = group
        self.router = Router(hidden_size, num_experts=num_experts, top_k=top_k, dtype=dtype)
        self.experts = nn.ModuleList(
            Expert(hidden_size, intermediate_size, group=group, dtype=dtype) for _ in range(num_experts)
        )

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
