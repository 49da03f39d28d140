"""Owns the tensor-parallel linear layers. Column-parallel ones need no collective, row-parallel ones end in one."""

import torch
from torch import Tensor

from shard.distributed import TPGroup
from shard.gate import Gate
from shard.layers.matmul import Product
from shard.layers.quantize import Quantization, quantized
from shard.layers.sharded import Piece, ShardedModule
from shard.partition import HeadSplit, Slice, split, whole


class ColumnParallelLinear(ShardedModule):
    """Several output-sharded matrices read as one product: [N, in] -> [N, sum of the local rows]."""

    weight: Tensor
    bias: Tensor | None
    gate: Gate | None = None

    def __init__(
        self,
        in_features: int,
        outputs: tuple[tuple[int, Slice], ...],
        *,
        bias: bool,
        dtype: torch.dtype,
    ) -> None:
        """`outputs` gives for each matrix its full number of rows and the rows of this rank."""
        super().__init__()
        self.declare("weight", tuple(Piece((full, in_features), 0, rows) for full, rows in outputs), dtype)
        if bias:
            self.declare("bias", tuple(Piece((full,), 0, rows) for full, rows in outputs), dtype)
        else:
            self.register_parameter("bias", None)

    @classmethod
    def qkv(
        cls,
        hidden_size: int,
        heads: HeadSplit,
        *,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        bias: bool,
        dtype: torch.dtype,
    ) -> "ColumnParallelLinear":
        """Queries, keys and values: [N, hidden] -> [N, (local q heads + 2 * local kv heads) * head_dim]."""
        q = (num_heads * head_dim, heads.q.scaled(head_dim))
        kv = (num_kv_heads * head_dim, heads.kv.scaled(head_dim))
        return cls(hidden_size, (q, kv, kv), bias=bias, dtype=dtype)

    def finish(self, quantize: Quantization | None = None) -> None:
        weight = quantized(self.weight, quantize) if quantize else self.weight
        self.product = Product(weight, self.bias, self.weight.dtype, gate=self.gate)
        self.drop("weight")

    def forward(self, x: Tensor) -> Tensor:
        return self.product(x)


class GatedLinear(ColumnParallelLinear):
    """The first two matrices of an MLP: act(gate(x)) * up(x), [N, hidden] -> [N, local width]."""

    def __init__(
        self,
        hidden_size: int,
        intermediate_size: int,
        *,
        gate: Gate,
        group: TPGroup,
        bias: bool,
        dtype: torch.dtype,
    ) -> None:
        part = (intermediate_size, split(intermediate_size, parts=group.size, index=group.rank))
        super().__init__(hidden_size, (part, part), bias=bias, dtype=dtype)
        self.gate = gate


class RowParallelLinear(ShardedModule):
    """An input-sharded matrix: [N, local in] -> [N, out], summed over the ranks."""

    weight: Tensor
    bias: Tensor | None

    def __init__(
        self, in_features: int, out_features: int, *, rows: Slice, group: TPGroup, bias: bool, dtype: torch.dtype
    ) -> None:
        """`rows` are the inputs of this rank, the outputs of the layer before."""
        super().__init__()
        self.group = group
        self.declare("weight", (Piece((out_features, in_features), 1, rows),), dtype)
        if bias:
            self.declare("bias", (Piece((out_features,), 0, whole(out_features)),), dtype)
        else:
            self.register_parameter("bias", None)

    def finish(self, quantize: Quantization | None = None) -> None:
        weight = quantized(self.weight, quantize, self.group) if quantize else self.weight
        # a bias is added once: inside the product of a single rank, else after the sum
        self.bias_after = self.bias if self.group.size > 1 else None
        self.product = Product(weight, self.bias if self.group.size == 1 else None, self.weight.dtype)
        self.drop("weight")

    def forward(self, x: Tensor) -> Tensor:
        out = self.group.all_reduce(self.product(x))
        return out if self.bias_after is None else out + self.bias_after
