"""Steps of attention in the shapes of Llama-3.1-8B: right as the torch path in float64 is, and how fast they read.

Keys and values are as many layers as it takes that no cache holds them, as in a model they are not held from one step
to the next.
"""

from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from bench.gpu.timing import captured, seconds
from shard.attention import attend
from shard.attention_groups import Span
from shard.attention_spec import AttentionSpec
from shard.forward_batch import ForwardBatch
from shard.kv_cache import KVCache

_KV_HEADS, _HEADS, _DIM, _BLOCK_SIZE = 8, 32, 128, 16
_SPEC = AttentionSpec(scale=_DIM**-0.5)
# Several times what any device's cache holds.
_LEAST_BYTES = 1 << 29
# A result is rounded once, and so are the weights it is a mean by.
TOLERANCE = 1e-2


@dataclass(frozen=True, slots=True)
class Case:
    """`batch` sequences of `context` committed tokens, each with a tree of `rows`."""

    batch: int
    context: int
    rows: int

    @property
    def kv_bytes(self) -> int:
        """Of the committed keys and values of a layer, in 16 bit."""
        return self.batch * self.context * 2 * _KV_HEADS * _DIM * 2

    @property
    def blocks_per_sequence(self) -> int:
        return -(-(self.context + self.rows) // _BLOCK_SIZE)


CASES = [Case(*sizes) for sizes in product((1, 8, 32), (1024, 8192), (1, 16, 64))]


class Step:
    """A step of attention over random keys and values, in blocks of a random order."""

    def __init__(self, case: Case, *, num_layers: int, dtype: torch.dtype, device: torch.device) -> None:
        self._case = case
        generator = torch.Generator(device).manual_seed(0)
        self._cache = self._make_cache(num_layers, dtype, device)
        for layer in range(num_layers):
            self._cache.pages(layer).normal_(generator=generator)
        shape = case.batch * case.rows, _HEADS + 2 * _KV_HEADS, _DIM
        self._qkv = torch.randn(shape, generator=generator, dtype=dtype, device=device)
        self._ancestors = _binary_trees(case, device)
        self._batch = self._make_batch(self._cache)

    def run(self) -> None:
        """One step's attention in all layers."""
        for layer in range(self._cache.num_layers):
            self._attend(layer, self._batch, self._cache, self._qkv)

    def difference(self) -> float:
        """The greatest between a result and that of the torch path in float64."""
        exact = self._make_cache(1, torch.float64, self._qkv.device)
        exact.pages(0).copy_(self._cache.pages(0))
        expected = self._attend(0, self._make_batch(exact), exact, self._qkv.double())
        actual = self._attend(0, self._batch, self._cache, self._qkv)
        return float((actual - expected).abs().max())

    def _attend(self, layer: int, batch: ForwardBatch, cache: KVCache, qkv: Tensor) -> Tensor:
        return attend(qkv, layer=layer, batch=batch, cache=cache, spec=_SPEC)

    def _make_cache(self, num_layers: int, dtype: torch.dtype, device: torch.device) -> KVCache:
        return KVCache(
            num_layers=num_layers,
            num_blocks=self._case.batch * self._case.blocks_per_sequence,
            block_size=_BLOCK_SIZE,
            num_kv_heads=_KV_HEADS,
            head_dim=_DIM,
            dtype=dtype,
            device=device,
            max_step_rows=self._case.batch * self._case.rows,
        )

    def _make_batch(self, cache: KVCache) -> ForwardBatch:
        case = self._case
        order = 1 + torch.randperm(cache.num_blocks, generator=torch.Generator().manual_seed(0))
        tables = order.view(case.batch, case.blocks_per_sequence).tolist()
        positions = case.context + self._ancestors[0].sum(1).repeat(case.batch) - 1
        return ForwardBatch.build(
            token_ids=torch.zeros_like(positions),
            positions=positions,
            spans=[Span(case.rows, table, direct=False) for table in tables],
            cache=cache,
            ancestors=self._ancestors,
        )


def difference(case: Case, device: torch.device) -> float:
    return Step(case, num_layers=1, dtype=torch.bfloat16, device=device).difference()


def layer_seconds(case: Case, device: torch.device) -> float:
    """Of the attention of one layer."""
    num_layers = -(-_LEAST_BYTES // case.kv_bytes)
    step = Step(case, num_layers=num_layers, dtype=torch.bfloat16, device=device)
    return seconds(captured(step.run)) / num_layers


def _binary_trees(case: Case, device: torch.device) -> Tensor:
    """[batch, rows, rows], as `ForwardBatch.build` wants them."""
    seen = torch.eye(case.rows, dtype=torch.bool)
    for row in range(1, case.rows):
        seen[row] |= seen[(row - 1) // 2]
    return seen.repeat(case.batch, 1, 1).to(device)
