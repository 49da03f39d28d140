"""Owns Medusa heads as layers (T. Cai et al. 2024, "Medusa", arXiv 2401.10774): residual blocks and projections, the
vocabulary split over the ranks. Knows no file and no tree.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shard.distributed import TPGroup
from shard.layers.embedding import ParallelLMHead
from shard.layers.matmul import Product
from shard.layers.quantize import Quantization
from shard.layers.sharded import Module, Piece, ShardedModule
from shard.medusa.best import best_of
from shard.medusa.figures import HeadFigures
from shard.partition import whole
from shard.speculation import Candidates


class ResidualBlock(ShardedModule):
    """x + silu(W x + b). Every rank holds all of it: to share it out would cost an all-gather, which takes as long as
    the reading that it saves."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, hidden_size: int, *, bias: bool, dtype: torch.dtype) -> None:
        super().__init__()
        self.declare("weight", (Piece((hidden_size, hidden_size), 0, whole(hidden_size)),), dtype)
        if bias:
            self.declare("bias", (Piece((hidden_size,), 0, whole(hidden_size)),), dtype)
        else:
            self.register_parameter("bias", None)

    def finish(self, quantize: Quantization | None = None) -> None:
        self.product = Product(self.weight, self.bias)
        self.drop("weight")

    def forward(self, x: Tensor) -> Tensor:
        return x + F.silu(self.product(x))


class MedusaHeads(Module):
    """H heads. Each projects with a matrix of its own, or all with the base's LM head or with some of its rows."""

    def __init__(
        self,
        *,
        hidden_size: int,
        num_heads: int,
        num_layers: int,
        bias: bool,
        projections: list[ParallelLMHead],
        shared: ParallelLMHead | None,
        num_rows: int,
        token_ids: Tensor | None,
        figures: HeadFigures | None,
        description: str,
        group: TPGroup,
        dtype: torch.dtype,
    ) -> None:
        """Either `projections` has one for each head or `shared` is for all; both have `num_rows` over all ranks, which
        stand for `token_ids` [num_rows] where that is given, else for the first of the vocabulary."""
        super().__init__()
        self.num_heads = num_heads
        self.group = group
        self.figures = figures
        self.description = description
        self.blocks = nn.ModuleList(
            nn.ModuleList(ResidualBlock(hidden_size, bias=bias, dtype=dtype) for _ in range(num_layers))
            for _ in range(num_heads)
        )
        self.projections = nn.ModuleList(projections)
        # In a tuple, so that the base's own layer is not registered as a child of this one.
        self._shared = (shared,)
        self._num_rows = num_rows
        self._token_ids = token_ids

    @torch.inference_mode()
    def candidates(self, hidden: Tensor, width: int) -> Candidates:
        """The `width` best guesses of each head from final hidden states [S, size]; equal on all ranks.

        A rank reduces its slice of the vocabulary to its best and a log-sum-exp; only these travel, in one all-gather.
        Of equals the lowest id is the better.
        """
        logits = self._logits(hidden)
        columns, values, log_sums = best_of(logits, width)
        shape = (self.num_heads, len(hidden), -1)
        values, rows, normalizer = values.view(shape), columns.view(shape), log_sums.view(shape)
        if self.group.size > 1:
            rows = rows + self.group.rank * logits.shape[1]
            parts = self.group.all_gather(torch.cat([values.double(), rows.double(), normalizer.double()], 2))
            normalizer = parts[..., -1:].logsumexp(0)
            by_rank = parts[..., :-1].movedim(0, 2)
            all_values, all_rows = by_rank.reshape(*by_rank.shape[:3], 2, -1).unbind(3)
            # Slices are in the order of their ids.
            values, order = all_values.flatten(2).sort(dim=2, descending=True, stable=True)
            values, rows = values[..., :width], all_rows.flatten(2).gather(2, order[..., :width]).long()
        # Of a sequence that overflowed there are none; and what is learned of heads is learned for all.
        probabilities = (values - normalizer).exp().float().nan_to_num(0.0)
        # Columns that are no token come last, with a probability of 0.
        token_ids = rows.clamp_max(self._num_rows - 1)
        if missing := width - values.shape[2]:
            probabilities, token_ids = F.pad(probabilities, (0, missing)), F.pad(token_ids, (0, missing))
        if self._token_ids is not None:
            token_ids = self._token_ids[token_ids]
        return Candidates(token_ids.transpose(0, 1), probabilities.transpose(0, 1))

    def _logits(self, hidden: Tensor) -> Tensor:
        """[H * S, rows of this rank], head by head."""
        states = []
        for blocks in self.blocks:
            x = hidden
            for block in blocks:  # type: ignore[attr-defined]
                x = block(x)
            states.append(x)
        (shared,) = self._shared
        if shared is None:
            return torch.cat([project(x) for project, x in zip(self.projections, states, strict=True)])
        logits: Tensor = shared(torch.cat(states))
        return logits
