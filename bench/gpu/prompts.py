"""Attention of prompts in the shapes of Llama-3.1-8B, whose keys and values go to the pages first, beside torch's flash
attention, which reads them where they are and stores nothing."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from bench.gpu.timing import captured, seconds
from shard.attention import attend
from shard.attention_groups import Span
from shard.attention_spec import AttentionSpec
from shard.forward_batch import ForwardBatch
from shard.kv_cache import KVCache

_KV_HEADS, _HEADS, _DIM, _BLOCK_SIZE = 8, 32, 128, 16
_SPEC = AttentionSpec(scale=_DIM**-0.5)


@dataclass(frozen=True, slots=True)
class PromptCase:
    """A chunk of `length` tokens of one prompt, behind `context` others."""

    context: int
    length: int

    @property
    def operations(self) -> int:
        """Of the products of attention in a layer, over what a row may see; a multiply-add counted as two."""
        pairs = self.length * self.context + self.length * (self.length + 1) // 2
        return 4 * pairs * _HEADS * _DIM


PROMPT_CASES = (PromptCase(0, 1024), PromptCase(0, 4096), PromptCase(4096, 4096), PromptCase(28672, 4096))


@dataclass(frozen=True, slots=True)
class PromptTime:
    """Of one layer; `flash_s` is torch's flash attention, None where its mask is another."""

    case: PromptCase
    layer_s: float
    difference: float
    flash_s: float | None

    @property
    def speed(self) -> float:
        """Operations per second."""
        return self.case.operations / self.layer_s


def time_prompt(case: PromptCase, device: torch.device) -> PromptTime:
    generator = torch.Generator(device).manual_seed(0)
    total = case.context + case.length
    num_blocks = -(-total // _BLOCK_SIZE)
    cache = KVCache(
        num_layers=1,
        num_blocks=num_blocks,
        block_size=_BLOCK_SIZE,
        num_kv_heads=_KV_HEADS,
        head_dim=_DIM,
        dtype=torch.bfloat16,
        device=device,
        max_step_rows=1,
    )
    cache.pages(0).normal_(generator=generator)
    shape = case.length, _HEADS + 2 * _KV_HEADS, _DIM
    qkv = torch.randn(shape, generator=generator, dtype=torch.bfloat16, device=device)
    positions = torch.arange(case.context, total, device=device)
    table = (1 + torch.randperm(num_blocks, generator=torch.Generator().manual_seed(0))).tolist()
    batch = ForwardBatch.build(
        token_ids=torch.zeros_like(positions),
        positions=positions,
        spans=[Span(case.length, table, direct=True)],
        cache=cache,
    )
    layer_s = seconds(captured(lambda: attend(qkv, layer=0, batch=batch, cache=cache, spec=_SPEC)))
    got = attend(qkv, layer=0, batch=batch, cache=cache, spec=_SPEC)
    q, k, v = (part.transpose(0, 1)[None] for part in torch.split(qkv, [_HEADS, _KV_HEADS, _KV_HEADS], 1))
    if case.context:
        blocks = torch.tensor(table, device=device)
        k, v = (
            pages[blocks].transpose(1, 2).reshape(-1, _KV_HEADS, _DIM)[:total].transpose(0, 1)[None]
            for pages in cache.pages(0).view(2, -1, _KV_HEADS, _BLOCK_SIZE, _DIM)
        )
        # The last row sees everything.
        expected = F.scaled_dot_product_attention(q[:, :, -1:].float(), k.float(), v.float(), enable_gqa=True)
        return PromptTime(case, layer_s, _difference(got[-1:], expected), None)

    def flash() -> torch.Tensor:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)

    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        return PromptTime(case, layer_s, _difference(got, flash()), seconds(captured(flash)))


def _difference(got: torch.Tensor, expected: torch.Tensor) -> float:
    """Of rows [N, heads * dim], and the same as [1, heads, N, dim]."""
    return float((got.view(-1, _HEADS, _DIM) - expected[0].transpose(0, 1)).abs().max())
