"""Drives a sharded model over its paged cache as a step runner would, for the tests of the forward path."""

import random
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from shard.attention_groups import Span
from shard.distributed import TPGroup
from shard.forward_batch import ForwardBatch
from shard.kv_cache import KVCache
from shard.layers.quantize import Quantization
from shard.model_config import ModelConfig
from shard.models import load_model


@dataclass
class Sequence:
    """Committed tokens and the blocks that hold them."""

    token_ids: list[int] = field(default_factory=list)
    block_ids: list[int] = field(default_factory=list)


@dataclass
class Part:
    """The next rows of one sequence: a prompt chunk (direct) or a decode/verify span.

    A span is a chain of which the first `num_kept` rows are committed, or, with `parents` (of each row but the first,
    as row indices), a tree of which the rows `kept` are, a path from row 0.
    """

    sequence: Sequence
    token_ids: list[int]
    direct: bool = False
    num_kept: int = 1
    parents: list[int] | None = None
    kept: list[int] | None = None

    @property
    def committed(self) -> list[int]:
        if self.direct:
            return list(range(len(self.token_ids)))
        return list(range(self.num_kept)) if self.kept is None else self.kept

    @property
    def depths(self) -> list[int]:
        if self.parents is None:
            return list(range(len(self.token_ids)))
        return [len(path(self.parents, row)) - 1 for row in range(len(self.token_ids))]


def path(parents: list[int], row: int) -> list[int]:
    """Rows from the root to `row`."""
    return [0] if row == 0 else [*path(parents, parents[row - 1]), row]


class PagedModel:
    def __init__(
        self,
        folder: Path,
        *,
        dtype: torch.dtype = torch.float32,
        group: TPGroup | None = None,
        quantize: Quantization | None = None,
        block_size: int = 4,
        num_blocks: int = 600,
    ) -> None:
        self.group = group or TPGroup()
        self.config = ModelConfig.from_folder(folder)
        device = torch.device("cpu")
        self.model = load_model(self.config, folder, group=self.group, dtype=dtype, device=device, quantize=quantize)
        self.cache = KVCache(
            num_layers=self.config.num_layers,
            num_blocks=num_blocks,
            block_size=block_size,
            num_kv_heads=self.model.num_kv_heads,
            head_dim=self.config.head_dim,
            dtype=dtype,
            device=device,
            max_step_rows=64,
        )
        self._free = random.Random(0).sample(range(1, num_blocks + 1), num_blocks)

    def step(self, parts: list[Part]) -> list[Tensor]:
        """Run one step and commit; returns the logits [rows, vocabulary] of each part."""
        positions: list[int] = []
        spans: list[Span] = []
        for part in parts:
            start = len(part.sequence.token_ids)
            part_positions = [start + depth for depth in part.depths]
            while len(part.sequence.block_ids) * self.cache.block_size <= max(part_positions):
                part.sequence.block_ids.append(self._free.pop())
            positions += part_positions
            spans.append(Span(len(part.token_ids), list(part.sequence.block_ids), part.direct))
        batch = ForwardBatch.build(
            token_ids=torch.tensor([t for part in parts for t in part.token_ids]),
            positions=torch.tensor(positions),
            spans=spans,
            cache=self.cache,
            ancestors=_ancestors([part for part in parts if not part.direct]),
        )
        logits = self.gather(self.model.logits(self.model.forward(batch, self.cache)))
        keep = torch.tensor(
            [row in part.committed for part in parts if not part.direct for row in range(len(part.token_ids))],
            dtype=torch.bool,
        )
        if batch.num_step_rows:
            slots = torch.where(keep, batch.physical_slots[: batch.num_step_rows], 0)
            self.cache.commit(torch.arange(batch.num_step_rows), slots)
        for part in parts:
            part.sequence.token_ids += [part.token_ids[row] for row in part.committed]
        return list(logits.split([len(part.token_ids) for part in parts]))

    def gather(self, logits: Tensor) -> Tensor:
        """The whole vocabulary's logits from each rank's slice."""
        whole = self.group.all_gather(logits).permute(1, 0, 2).reshape(logits.shape[0], -1)
        return whole[:, : self.config.vocab_size]

    def greedy(self, prompts: list[list[int]], num_tokens: int, *, chunk: int = 1000) -> list[list[int]]:
        """Decode all prompts in one batch, greedily."""
        sequences = [Sequence() for _ in prompts]
        last = [self.prefill(s, prompt, chunk=chunk)[-1] for s, prompt in zip(sequences, prompts, strict=True)]
        out = [[int(row.argmax())] for row in last]
        for _ in range(num_tokens - 1):
            logits = self.step([Part(s, [tokens[-1]]) for s, tokens in zip(sequences, out, strict=True)])
            for tokens, rows in zip(out, logits, strict=True):
                tokens.append(int(rows[-1].argmax()))
        return out

    def prefill(self, sequence: Sequence, prompt: list[int], *, chunk: int = 1000) -> Tensor:
        """Logits of every prompt row, prefilled `chunk` rows a step."""
        rows = [
            self.step([Part(sequence, prompt[start : start + chunk], direct=True)])[0]
            for start in range(0, len(prompt), chunk)
        ]
        return torch.cat(rows)


def _ancestors(parts: list[Part]) -> Tensor | None:
    """None where every span is a chain, as a runner without trees has it."""
    if all(part.parents is None for part in parts):
        return None
    num_rows = max(len(part.token_ids) for part in parts)
    seen = torch.zeros(len(parts), num_rows, num_rows, dtype=torch.bool)
    for s, part in enumerate(parts):
        parents = list(range(len(part.token_ids) - 1)) if part.parents is None else part.parents
        for row in range(len(part.token_ids)):
            seen[s, row, path(parents, row)] = True
    return seen


def random_tokens(count: int, *, seed: int = 0, vocab: int = 131) -> list[int]:
    """Token ids without the end token 0."""
    return random.Random(seed).choices(range(1, vocab), k=count)
