"""Owns attention over paged keys and values: the path that runs on CPU and CUDA and that faster ones must equal.

Per group: blocks are gathered into scratch laid out by absolute position, the step's own rows are put behind them, and
one fused kernel does the rest. What a row must not see is finite and hidden by the mask. Scores with a soft cap have no
fused kernel: their products are taken one by one. Where a kernel reads the pages itself (in C for bfloat16 on CPU, in
Triton on CUDA), it takes all rows and there are no groups.
Knows nothing of weights, rotary positions or who owns a block.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from shard.attention_groups import AttentionGroup
from shard.attention_spec import AttentionSpec
from shard.cpu import kernels as cpu
from shard.cpu.kernels import kernels_for
from shard.cuda import kernels as cuda
from shard.cuda.kernels import attention_for
from shard.forward_batch import ForwardBatch
from shard.kv_cache import KVCache
from shard.layers.rotary import Rotation


def kernel_name(dtype: torch.dtype, device: torch.device, *, softcap: float | None) -> str:
    if kernels_for(dtype, device):
        return cpu.NAME
    if attention_for(dtype, device):
        return cuda.NAME
    return "torch-sdpa" if softcap is None else "torch"


def attend(
    qkv: Tensor,
    *,
    layer: int,
    batch: ForwardBatch,
    cache: KVCache,
    spec: AttentionSpec,
    rotation: Rotation | None = None,
) -> Tensor:
    """[N, q heads + 2 * kv heads, head_dim] -> [N, q heads * head_dim]; keys and values are stored.

    Queries and keys are rotated, unless they are already, and `rotation` is None.
    """
    num_rows, num_heads = qkv.shape[0], qkv.shape[1] - 2 * cache.num_kv_heads
    out = qkv.new_empty((num_rows, num_heads, cache.head_dim))
    step_rows = cache.step_rows(layer)
    # Only the kernel rotates what it reads, and keys that are written to the pages before it must be.
    is_fused = batch.device_spans is not None and batch.direct_index is None
    if rotation is not None and not is_fused:
        rotation.apply_(qkv[:, : num_heads + cache.num_kv_heads])
    if batch.paged is not None and (kernels := kernels_for(qkv.dtype, qkv.device)):
        kernels.attend(
            qkv,
            cache.pages(layer),
            batch.paged,
            out=out,
            step_rows=step_rows,
            physical_slots=batch.physical_slots,
            block_size=cache.block_size,
            spec=spec,
        )
        return out.view(num_rows, -1)
    q, kv = qkv[:, :num_heads], qkv[:, num_heads:]
    # What is hidden is multiplied by zero, which makes no number of what overflowed (float16 of large activations): it
    # is stored as zero, by the kernel too.
    if batch.direct_index is not None:
        cache.write(layer, batch.direct_index, torch.nan_to_num(kv[batch.num_step_rows :], 0.0, 0.0, 0.0))
    if batch.device_spans is not None and (by_kernel := attention_for(qkv.dtype, qkv.device)):
        by_kernel(
            qkv,
            cache.pages(layer),
            batch.device_spans,
            out=out,
            step_rows=step_rows,
            block_size=cache.block_size,
            spec=spec,
            rotation=(rotation.cos, rotation.sin) if rotation is not None and is_fused else None,
        )
        return out.view(num_rows, -1)
    if batch.num_step_rows:
        torch.nan_to_num(kv[: batch.num_step_rows], 0.0, 0.0, 0.0, out=step_rows[: batch.num_step_rows])
    for group in batch.groups:
        _fill_scratch(group, step_rows, layer, cache)
        _attend_group(q, out, group, cache, spec)
    return out.view(num_rows, -1)


def _fill_scratch(group: AttentionGroup, step_rows: Tensor, layer: int, cache: KVCache) -> None:
    torch.index_select(cache.pages(layer), 0, group.pages, out=group.scratch_pages)
    if group.own is None:
        return
    if group.scattered is None:
        own = step_rows[group.first_row : group.first_row + group.num_real_rows]
    else:
        own = step_rows.index_select(0, group.scattered.rows)
    group.scratch_tokens.index_copy_(0, group.own, own.view(-1, cache.head_dim))


def _attend_group(q: Tensor, out: Tensor, group: AttentionGroup, cache: KVCache, spec: AttentionSpec) -> None:
    """Write the group's rows of `out`; q and out are [N, q heads, head_dim]."""
    shape = (group.num_spans, group.num_rows, cache.num_kv_heads, -1, cache.head_dim)
    if group.scattered is None:
        rows = slice(group.first_row, group.first_row + group.num_real_rows)
        out[rows].view(shape).copy_(_attend(q[rows].view(shape), group, spec))
        return
    padded, real, places = group.scattered
    attended = _attend(q.index_select(0, padded).view(shape), group, spec)
    out.index_copy_(0, real, attended.reshape(-1, *out.shape[1:]).index_select(0, places))


def _attend(q: Tensor, group: AttentionGroup, spec: AttentionSpec) -> Tensor:
    """Queries [S, R, kv heads, G, D] over the group's scratch, same shape out."""
    if spec.softcap is not None:
        return _attend_capped(
            q, group.keys, group.values, group.mask(spec.window), scale=spec.scale, softcap=spec.softcap
        )
    if group.is_chunk:
        return _attend_chunk(q, group.keys, group.values, group.mask(spec.window), scale=spec.scale)
    return _attend_step(q, group.keys, group.values, group.mask(spec.window, q.shape[3]), scale=spec.scale)


def _attend_step(q: Tensor, keys: Tensor, values: Tensor, mask: Tensor, *, scale: float) -> Tensor:
    """Few rows, many keys: the heads of a kv group are laid into the query length and share one pass over its keys.

    q [S, R, kv heads, G, D], keys and values [S, kv heads, L, D], mask [S, 1, R * G, L] -> [S, R, kv heads, G, D].
    """
    spans, rows, kv_heads, group, dim = q.shape
    folded = q.transpose(1, 2).reshape(spans, kv_heads, rows * group, dim)
    attended = F.scaled_dot_product_attention(folded, keys, values, attn_mask=mask, scale=scale)
    return attended.view(spans, kv_heads, rows, group, dim).transpose(1, 2)


def _attend_chunk(q: Tensor, keys: Tensor, values: Tensor, mask: Tensor, *, scale: float) -> Tensor:
    """Many rows of one sequence: a kv head is a batch entry that its query heads read through a stride of zero.

    q [1, R, kv heads, G, D], keys and values [1, kv heads, L, D], mask [1, 1, R, L] -> [1, R, kv heads, G, D].
    """
    by_head = q.squeeze(0).permute(1, 2, 0, 3)
    shared = (*by_head.shape[:2], *keys.shape[2:])
    attended = F.scaled_dot_product_attention(
        by_head,
        keys.transpose(0, 1).expand(shared),
        values.transpose(0, 1).expand(shared),
        attn_mask=mask,
        scale=scale,
    )
    return attended.permute(2, 0, 1, 3).unsqueeze(0)


def _attend_capped(q: Tensor, keys: Tensor, values: Tensor, mask: Tensor, *, scale: float, softcap: float) -> Tensor:
    """Scores become softcap * tanh(score / softcap), in float32 throughout: a cap of 50 leaves bfloat16 no decimals.

    q [S, R, kv heads, G, D], keys and values [S, kv heads, L, D], mask [S, 1, R, L] -> [S, R, kv heads, G, D].
    """
    spans, rows, kv_heads, group, dim = q.shape
    precise = torch.promote_types(q.dtype, torch.float32)
    folded = q.transpose(1, 2).reshape(spans, kv_heads, rows * group, dim).to(precise)
    scores = (folded * (scale / softcap)) @ keys.to(precise).transpose(2, 3)
    scores = scores.tanh_().mul_(softcap).view(spans, kv_heads, rows, group, -1).add_(mask[:, :, :, None])
    attended = scores.softmax(-1).view(spans, kv_heads, rows * group, -1) @ values.to(precise)
    return attended.to(q.dtype).view(spans, kv_heads, rows, group, dim).transpose(1, 2)
