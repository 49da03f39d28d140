"""Owns the two vocabulary-sharded layers: the embedding and the head. Rank r holds ids r*ceil(V/size) and on."""

import torch
import torch.nn.functional as F
from torch import Tensor

from shard.distributed import TPGroup
from shard.layers.matmul import Product
from shard.layers.quantize import Quantization, quantized
from shard.layers.sharded import Piece, ShardedModule
from shard.partition import split


class VocabParallelEmbedding(ShardedModule):
    """Token ids [N] -> hidden states [N, hidden], times `scale` rounded to the dtype of the weights.

    Each rank looks up its own ids and the sum is exact.
    """

    weight: Tensor

    def __init__(
        self, vocab_size: int, hidden_size: int, *, group: TPGroup, dtype: torch.dtype, scale: float | None = None
    ) -> None:
        super().__init__()
        self.group = group
        self.scale = None if scale is None else float(torch.tensor(scale, dtype=dtype))
        self.rows = split(vocab_size, parts=group.size, index=group.rank)
        self.declare("weight", (Piece((vocab_size, hidden_size), 0, self.rows),), dtype)

    def forward(self, token_ids: Tensor) -> Tensor:
        out = self._look_up(token_ids)
        return out if self.scale is None else out.mul_(self.scale)

    def _look_up(self, token_ids: Tensor) -> Tensor:
        if self.group.size == 1:
            return F.embedding(token_ids, self.weight)
        mine = (token_ids >= self.rows.start) & (token_ids < self.rows.stop)
        local = torch.where(mine, token_ids - self.rows.start, 0)
        out = F.embedding(local, self.weight).masked_fill_(~mine.unsqueeze(-1), 0)
        return self.group.all_reduce(out)


class ParallelLMHead(ShardedModule):
    """Hidden states [M, hidden] -> logits of this rank's ids [M, ceil(V/size)]; columns that are no id are -inf.

    The logits are float32, or float64 in float64: a choice between tokens is not made in 16 bits of range. With a
    `softcap` c they are c * tanh(logit / c).
    """

    weight: Tensor

    def __init__(
        self,
        vocab_size: int,
        hidden_size: int,
        *,
        group: TPGroup,
        dtype: torch.dtype,
        tied_to: VocabParallelEmbedding | None,
        softcap: float | None = None,
    ) -> None:
        super().__init__()
        self.softcap = softcap
        self.tied_to = (tied_to,)  # in a tuple, so that it is not registered as a child of this layer
        self.rows = split(vocab_size, parts=group.size, index=group.rank)
        self.vocab_start = group.rank * self.rows.size
        if tied_to is None:
            self.declare("weight", (Piece((vocab_size, hidden_size), 0, self.rows),), dtype)

    def finish(self, quantize: Quantization | None = None) -> None:
        (embedding,) = self.tied_to
        weight = self.weight if embedding is None else embedding.weight
        self.product = Product(quantized(weight, quantize) if quantize else weight, None, weight.dtype)
        if embedding is None:
            self.drop("weight")

    def forward(self, hidden: Tensor) -> Tensor:
        logits = self.product(hidden, wide=True)
        if self.softcap is not None:
            logits.div_(self.softcap).tanh_().mul_(self.softcap)
        num_real = self.rows.stop - self.rows.start
        if num_real < self.rows.size:
            logits[:, num_real:] = -torch.inf
        return logits
