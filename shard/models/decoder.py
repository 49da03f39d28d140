"""Owns the body that all families share, and what a family says of itself: the parts it chooses and their names.

Reads as the model on one device; the layers shard themselves. Sizes and constants are the configuration's.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from shard import attention
from shard.cpu.decoder import CompiledLayers, DecoderSizes, LayerParts
from shard.cpu.kernels import NAME, kernels_for
from shard.distributed import TPGroup
from shard.forward_batch import ForwardBatch
from shard.kv_cache import KVCache
from shard.layers.embedding import ParallelLMHead, VocabParallelEmbedding
from shard.layers.norm import RMSNorm
from shard.layers.rotary import Rotary, Rotation
from shard.layers.sharded import Module
from shard.model_config import ModelConfig
from shard.models.blocks import MLP, Attention
from shard.models.moe import SparseMoE
from shard.partition import split_heads


class Layer(Module):
    """Attention and MLP, each normalised before and added to the residual stream."""

    def __init__(
        self, config: ModelConfig, index: int, family: "Family", *, group: TPGroup, dtype: torch.dtype
    ) -> None:
        super().__init__()
        norm = partial(family.norm, config.hidden_size, eps=config.rms_norm_eps, dtype=dtype)
        self.input_norm = norm()
        self.attention = family.attention(config, index, group=group, dtype=dtype)
        self.mlp_norm = norm()
        self.mlp = family.mlp(config, group=group, dtype=dtype)

    def parts(self) -> dict[str, Any]:
        """As `LayerParts` names them; the MLP is a dense one."""
        assert isinstance(self.mlp, MLP)
        norms = {"input_norm": self.input_norm.factor, "mlp_norm": self.mlp_norm.factor}
        return {**norms, **self.attention.parts(), **self.mlp.parts()}

    def forward(
        self, x: Tensor, added: Tensor | None, rotation: Rotation, batch: ForwardBatch, cache: KVCache
    ) -> Tensor:
        """`added` is what the layer before adds to the residual stream x [N, hidden], which becomes the sum; the
        result is what this one adds to it. So a norm and the sum before it are one pass over the rows."""
        out = self.attention(self.input_norm.of_sum(x, added), rotation, batch, cache)
        result: Tensor = self.mlp(self.mlp_norm.of_sum(x, out))
        return result


class SandwichLayer(Layer):
    """Attention and MLP, each normalised before and after, then added to the residual stream."""

    def __init__(
        self, config: ModelConfig, index: int, family: "Family", *, group: TPGroup, dtype: torch.dtype
    ) -> None:
        super().__init__(config, index, family, group=group, dtype=dtype)
        self.attention_out_norm = family.norm(config.hidden_size, eps=config.rms_norm_eps, dtype=dtype)
        self.mlp_out_norm = family.norm(config.hidden_size, eps=config.rms_norm_eps, dtype=dtype)

    def parts(self) -> dict[str, Any]:
        norms = {"attention_out_norm": self.attention_out_norm.factor, "mlp_out_norm": self.mlp_out_norm.factor}
        return {**super().parts(), **norms}

    def forward(
        self, x: Tensor, added: Tensor | None, rotation: Rotation, batch: ForwardBatch, cache: KVCache
    ) -> Tensor:
        out = self.attention_out_norm(self.attention(self.input_norm.of_sum(x, added), rotation, batch, cache))
        result: Tensor = self.mlp_out_norm(self.mlp(self.mlp_norm.of_sum(x, out)))
        return result


@dataclass(frozen=True, slots=True)
class Family:
    """The parts of a family; `names` says which layers of the checkpoint each layer of ours is filled from."""

    names: Mapping[str, tuple[str, ...]]
    norm: type[RMSNorm] = RMSNorm
    attention: type[Attention] = Attention
    mlp: type[MLP] | type[SparseMoE] = MLP
    layer: type[Layer] = Layer


class Decoder(Module):
    """The whole model. Weights are absent until `shard.weights` fills them."""

    def __init__(
        self, config: ModelConfig, family: Family, *, group: TPGroup, dtype: torch.dtype, device: torch.device
    ) -> None:
        super().__init__()
        self.config = config
        self.group = group
        self.dtype = dtype
        self.device = device
        # what this rank's cache must hold, padding included
        self.num_kv_heads = split_heads(
            config.num_heads, config.num_kv_heads, parts=group.size, index=group.rank
        ).kv.size
        # layers that share their positions' rotation compute it once
        ropes = list(dict.fromkeys(config.ropes))
        self.rotaries = [Rotary(rope, config.head_dim, dtype=dtype, device=device) for rope in ropes]
        self.rotary_of_layer = [ropes.index(rope) for rope in config.ropes]
        self.embed_tokens = VocabParallelEmbedding(
            config.vocab_size, config.hidden_size, group=group, dtype=dtype, scale=config.embedding_scale
        )
        self.layers = nn.ModuleList(
            family.layer(config, i, family, group=group, dtype=dtype) for i in range(config.num_layers)
        )
        self.norm = family.norm(config.hidden_size, eps=config.rms_norm_eps, dtype=dtype)
        self.lm_head = ParallelLMHead(
            config.vocab_size,
            config.hidden_size,
            group=group,
            dtype=dtype,
            tied_to=self.embed_tokens if config.tie_word_embeddings else None,
            softcap=config.logit_softcap,
        )
        # the token id of the first column of this rank's logits
        self.vocab_start = self.lm_head.vocab_start
        self._compiled: CompiledLayers | None = None

    def finish(self) -> None:
        """All layers are filled: they become one call where there are kernels for all that they do."""
        kernels = kernels_for(self.dtype, self.device)
        layers = [layer for layer in self.layers if isinstance(layer, Layer)]
        mlps = [layer.mlp for layer in layers if isinstance(layer.mlp, MLP)]
        if kernels is None or self.lm_head.product.kernel != NAME or len(mlps) < len(layers):
            return
        parts = [
            LayerParts(spec=layer.attention.spec, rotation=rotary, **layer.parts())
            for layer, rotary in zip(layers, self.rotary_of_layer, strict=True)
        ]
        sizes = DecoderSizes(
            hidden=self.config.hidden_size,
            heads=layers[0].attention.num_q_heads,
            kv_heads=self.num_kv_heads,
            head_dim=self.config.head_dim,
            width=mlps[0].width,
            gate=mlps[0].gate,
            eps=self.config.rms_norm_eps,
        )
        rotations = [(rotary.frequencies, rotary.scale) for rotary in self.rotaries]
        self._compiled = CompiledLayers(kernels, parts, rotations, self.norm.factor, sizes, self.group)

    @property
    def looks_at_values(self) -> bool:
        """Whether a layer needs values on the host, so that a step cannot be captured."""
        return any(isinstance(module, SparseMoE) for module in self.modules())

    @property
    def kernels(self) -> dict[str, str]:
        """Names of the live kernels, by purpose."""
        compiled = kernels_for(self.dtype, self.device)
        return {
            "linear": self.lm_head.product.kernel,
            "layers": NAME if self._compiled else "torch",
            "attention": attention.kernel_name(self.dtype, self.device, softcap=self.config.attention_softcap),
            **(
                {"arithmetic": compiled.arithmetic(is_int8=self.lm_head.product.scales is not None)} if compiled else {}
            ),
        }

    @torch.inference_mode()
    def forward(self, batch: ForwardBatch, cache: KVCache, on_launch: Callable[[], None] = lambda: None) -> Tensor:
        """Rows of the step -> final hidden states [N, hidden], normalised. Stores keys and values in the cache.

        `on_launch` is called where the layers begin.
        """
        x = self.embed_tokens(batch.token_ids)
        if self._compiled is not None and self._compiled.takes(len(x)):
            return self._compiled(x, batch, cache, on_launch)
        on_launch()
        rotations = [rotary.rotation(batch.positions) for rotary in self.rotaries]
        added: Tensor | None = None
        for layer, rotary in zip(self.layers, self.rotary_of_layer, strict=True):
            added = layer(x, added, rotations[rotary], batch, cache)
        out: Tensor = self.norm.of_sum(x, added)
        return out

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """[M, hidden] -> [M, ids of this rank], float32 (float64 in float64); columns that are no id are -inf."""
        out: Tensor = self.lm_head(hidden)
        return out
