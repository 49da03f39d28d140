"""Owns the blocks of a decoder layer that families choose from. Knows no checkpoint names.

They read as on one device; the layers inside shard themselves.
"""

import torch
from torch import Tensor

from shard.attention import attend
from shard.attention_spec import AttentionSpec
from shard.distributed import TPGroup
from shard.forward_batch import ForwardBatch
from shard.gate import Gate
from shard.kv_cache import KVCache
from shard.layers.linear import ColumnParallelLinear, GatedLinear, RowParallelLinear
from shard.layers.norm import OffsetRMSNorm, RMSNorm
from shard.layers.rotary import Rotation
from shard.layers.sharded import Module
from shard.model_config import ModelConfig
from shard.partition import split, split_heads


class Attention(Module):
    """Self-attention of one layer over the paged cache."""

    def __init__(self, config: ModelConfig, layer: int, *, group: TPGroup, dtype: torch.dtype) -> None:
        super().__init__()
        heads = split_heads(config.num_heads, config.num_kv_heads, parts=group.size, index=group.rank)
        self.layer = layer
        self.spec = AttentionSpec(
            scale=config.attention_scale, window=config.windows[layer], softcap=config.attention_softcap
        )
        self.num_q_heads = heads.q.size
        self.num_rotated = heads.q.size + heads.kv.size
        self.head_dim = config.head_dim
        self.qkv_proj = ColumnParallelLinear.qkv(
            config.hidden_size,
            heads,
            num_heads=config.num_heads,
            num_kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            bias=config.qkv_bias,
            dtype=dtype,
        )
        self.o_proj = RowParallelLinear(
            config.num_heads * config.head_dim,
            config.hidden_size,
            rows=heads.q.scaled(config.head_dim),
            group=group,
            bias=config.o_bias,
            dtype=dtype,
        )

    def forward(self, x: Tensor, rotation: Rotation, batch: ForwardBatch, cache: KVCache) -> Tensor:
        qkv = self.qkv_proj(x).view(x.shape[0], -1, self.head_dim)
        self.normalise_(qkv[:, : self.num_q_heads], qkv[:, self.num_q_heads : self.num_rotated])
        attended = attend(qkv, layer=self.layer, batch=batch, cache=cache, spec=self.spec, rotation=rotation)
        out: Tensor = self.o_proj(attended)
        return out

    def parts(self) -> dict[str, Tensor | None]:
        """As `LayerParts` names them."""
        return {
            "qkv": self.qkv_proj.product.weight,
            "qkv_scales": self.qkv_proj.product.scales,
            "qkv_bias": self.qkv_proj.product.bias,
            "o": self.o_proj.product.weight,
            "o_scales": self.o_proj.product.scales,
            "o_bias": self.o_proj.bias,
        }

    def normalise_(self, q: Tensor, k: Tensor) -> None:
        """What happens to queries and keys [N, heads, head_dim], in place, before they are rotated."""


class QKNormAttention(Attention):
    """Queries and keys are normalised per head before they are rotated."""

    norm = RMSNorm

    def __init__(self, config: ModelConfig, layer: int, *, group: TPGroup, dtype: torch.dtype) -> None:
        super().__init__(config, layer, group=group, dtype=dtype)
        self.q_norm = self.norm(config.head_dim, eps=config.rms_norm_eps, dtype=dtype)
        self.k_norm = self.norm(config.head_dim, eps=config.rms_norm_eps, dtype=dtype)

    def parts(self) -> dict[str, Tensor | None]:
        return {**super().parts(), "q_norm": self.q_norm.factor, "k_norm": self.k_norm.factor}

    def normalise_(self, q: Tensor, k: Tensor) -> None:
        q.copy_(self.q_norm(q))
        k.copy_(self.k_norm(k))


class OffsetQKNormAttention(QKNormAttention):
    """The same with the norm of the gemma families."""

    norm = OffsetRMSNorm


class MLP(Module):
    """down(silu(gate(x)) * up(x))."""

    gate: Gate = "silu"
    down = RowParallelLinear

    def __init__(self, config: ModelConfig, *, group: TPGroup, dtype: torch.dtype) -> None:
        super().__init__()
        self.width = split(config.intermediate_size, parts=group.size, index=group.rank).size
        self.gate_up_proj = GatedLinear(
            config.hidden_size,
            config.intermediate_size,
            gate=self.gate,
            group=group,
            bias=config.mlp_bias,
            dtype=dtype,
        )
        self.down_proj = self.down(
            config.intermediate_size,
            config.hidden_size,
            rows=split(config.intermediate_size, parts=group.size, index=group.rank),
            group=group,
            bias=config.mlp_bias,
            dtype=dtype,
        )

    def parts(self) -> dict[str, Tensor | None]:
        """As `LayerParts` names them."""
        return {
            "gate_up": self.gate_up_proj.product.weight,
            "gate_up_scales": self.gate_up_proj.product.scales,
            "gate_up_bias": self.gate_up_proj.product.bias,
            "down": self.down_proj.product.weight,
            "down_scales": self.down_proj.product.scales,
            "down_bias": self.down_proj.bias,
        }

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(self.gate_up_proj(x))
        return out


class GeluMLP(MLP):
    """down(gelu(gate(x)) * up(x))."""

    gate = "gelu_tanh"
