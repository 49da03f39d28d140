"""Owns the llama family: which layers there are, in what order, and what checkpoints call them.

Reads as the model on one device; the layers shard themselves. With `qk_norm` it is also qwen3's body.
"""

import torch
from torch import Tensor, nn

from shard import attention
from shard.attention import attend
from shard.distributed import TPGroup
from shard.forward_batch import ForwardBatch
from shard.kv_cache import KVCache
from shard.layers.activation import silu_mul
from shard.layers.embedding import ParallelLMHead, VocabParallelEmbedding
from shard.layers.linear import ColumnParallelLinear, RowParallelLinear
from shard.layers.norm import RMSNorm
from shard.layers.rotary import Rotary, Rotation
from shard.layers.sharded import Module
from shard.model_config import ModelConfig
from shard.partition import split, split_heads

NAMES = {
    "embed_tokens": ("model.embed_tokens",),
    "layers.*.input_norm": ("model.layers.*.input_layernorm",),
    "layers.*.attention.qkv_proj": (
        "model.layers.*.self_attn.q_proj",
        "model.layers.*.self_attn.k_proj",
        "model.layers.*.self_attn.v_proj",
    ),
    "layers.*.attention.o_proj": ("model.layers.*.self_attn.o_proj",),
    "layers.*.mlp_norm": ("model.layers.*.post_attention_layernorm",),
    "layers.*.mlp.gate_up_proj": ("model.layers.*.mlp.gate_proj", "model.layers.*.mlp.up_proj"),
    "layers.*.mlp.down_proj": ("model.layers.*.mlp.down_proj",),
    "norm": ("model.norm",),
    "lm_head": ("lm_head",),
}
# constants that old files carry
IGNORED = ("model.layers.*.self_attn.rotary_emb.inv_freq", "model.rotary_emb.inv_freq")


class Attention(Module):
    """Self-attention of one layer over the paged cache."""

    def __init__(self, config: ModelConfig, layer: int, *, qk_norm: bool, group: TPGroup, dtype: torch.dtype) -> None:
        super().__init__()
        heads = split_heads(config.num_heads, config.num_kv_heads, parts=group.size, index=group.rank)
        self.layer = layer
        self.num_q_heads = heads.q.size
        self.num_rotated = heads.q.size + heads.kv.size
        self.head_dim = config.head_dim
        self.qkv_proj = ColumnParallelLinear.qkv(
            config.hidden_size,
            heads,
            num_heads=config.num_heads,
            num_kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            bias=config.attention_bias,
            dtype=dtype,
        )
        self.o_proj = RowParallelLinear(
            config.num_heads * config.head_dim,
            config.hidden_size,
            rows=heads.q.scaled(config.head_dim),
            group=group,
            bias=config.attention_bias,
            dtype=dtype,
        )
        self.qk_norm = qk_norm
        if qk_norm:
            self.q_norm = RMSNorm(config.head_dim, eps=config.rms_norm_eps, dtype=dtype)
            self.k_norm = RMSNorm(config.head_dim, eps=config.rms_norm_eps, dtype=dtype)

    def forward(self, x: Tensor, rotation: Rotation, batch: ForwardBatch, cache: KVCache) -> Tensor:
        qkv = self.qkv_proj(x).view(x.shape[0], -1, self.head_dim)
        rotated = qkv[:, : self.num_rotated]
        if self.qk_norm:
            q, k = rotated[:, : self.num_q_heads], rotated[:, self.num_q_heads :]
            q.copy_(self.q_norm(q))
            k.copy_(self.k_norm(k))
        rotation.apply_(rotated)
        out: Tensor = self.o_proj(attend(qkv, layer=self.layer, batch=batch, cache=cache))
        return out


class MLP(Module):
    """down(silu(gate(x)) * up(x))."""

    def __init__(self, config: ModelConfig, *, group: TPGroup, dtype: torch.dtype) -> None:
        super().__init__()
        self.gate_up_proj = ColumnParallelLinear.gate_up(
            config.hidden_size, config.intermediate_size, group=group, bias=config.mlp_bias, dtype=dtype
        )
        self.down_proj = RowParallelLinear(
            config.intermediate_size,
            config.hidden_size,
            rows=split(config.intermediate_size, parts=group.size, index=group.rank),
            group=group,
            bias=config.mlp_bias,
            dtype=dtype,
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(silu_mul(self.gate_up_proj(x)))
        return out


class Layer(Module):
    """Attention and MLP, each normalised before and added to the residual stream."""

    def __init__(self, config: ModelConfig, layer: int, *, qk_norm: bool, group: TPGroup, dtype: torch.dtype) -> None:
        super().__init__()
        self.input_norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps, dtype=dtype)
        self.attention = Attention(config, layer, qk_norm=qk_norm, group=group, dtype=dtype)
        self.mlp_norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps, dtype=dtype)
        self.mlp = MLP(config, group=group, dtype=dtype)

    def forward(self, x: Tensor, rotation: Rotation, batch: ForwardBatch, cache: KVCache) -> Tensor:
        x = x + self.attention(self.input_norm(x), rotation, batch, cache)
        out: Tensor = x.add_(self.mlp(self.mlp_norm(x)))
        return out


class Llama(Module):
    """The whole decoder. Weights are absent until `shard.weights` fills them."""

    def __init__(
        self, config: ModelConfig, *, group: TPGroup, dtype: torch.dtype, device: torch.device, qk_norm: bool = False
    ) -> None:
        super().__init__()
        self.config = config
        self.dtype = dtype
        self.device = device
        # what this rank's cache must hold, padding included
        self.num_kv_heads = split_heads(
            config.num_heads, config.num_kv_heads, parts=group.size, index=group.rank
        ).kv.size
        self.rotary = Rotary(config.rope, config.head_dim, dtype=dtype, device=device)
        self.embed_tokens = VocabParallelEmbedding(config.vocab_size, config.hidden_size, group=group, dtype=dtype)
        self.layers = nn.ModuleList(
            Layer(config, i, qk_norm=qk_norm, group=group, dtype=dtype) for i in range(config.num_layers)
        )
        self.norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps, dtype=dtype)
        self.lm_head = ParallelLMHead(
            config.vocab_size,
            config.hidden_size,
            group=group,
            dtype=dtype,
            tied_to=self.embed_tokens if config.tie_word_embeddings else None,
        )
        # the token id of the first column of this rank's logits
        self.vocab_start = self.lm_head.vocab_start

    @property
    def kernels(self) -> dict[str, str]:
        """Names of the live kernels, by purpose."""
        return {"linear": self.lm_head.product.kernel, "attention": attention.kernel_name(self.dtype, self.device)}

    @torch.inference_mode()
    def forward(self, batch: ForwardBatch, cache: KVCache) -> Tensor:
        """Rows of the step -> final hidden states [N, hidden], normalised. Stores keys and values in the cache."""
        rotation = self.rotary.rotation(batch.positions)
        x = self.embed_tokens(batch.token_ids)
        for layer in self.layers:
            x = layer(x, rotation, batch, cache)
        out: Tensor = self.norm(x)
        return out

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """[M, hidden] -> [M, ids of this rank], float32 (float64 in float64); columns that are no id are -inf."""
        out: Tensor = self.lm_head(hidden)
        return out
