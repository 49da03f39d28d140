"""Owns the gemma families: another norm and activation; from the second on a sublayer is normalised after it too.

Scaled embeddings, soft caps and alternating windows are the configuration's.
"""

from shard.layers.norm import OffsetRMSNorm
from shard.models import llama
from shard.models.blocks import GeluMLP, OffsetQKNormAttention
from shard.models.decoder import Family, SandwichLayer
from shard.models.qwen import QK_NORM_NAMES

SANDWICH_NAMES = llama.NAMES | {
    "layers.*.attention_out_norm": ("model.layers.*.post_attention_layernorm",),
    "layers.*.mlp_norm": ("model.layers.*.pre_feedforward_layernorm",),
    "layers.*.mlp_out_norm": ("model.layers.*.post_feedforward_layernorm",),
}

GEMMA = Family(llama.NAMES, norm=OffsetRMSNorm, mlp=GeluMLP)
GEMMA2 = Family(SANDWICH_NAMES, norm=OffsetRMSNorm, mlp=GeluMLP, layer=SandwichLayer)
GEMMA3 = Family(
    SANDWICH_NAMES | QK_NORM_NAMES,
    norm=OffsetRMSNorm,
    attention=OffsetQKNormAttention,
    mlp=GeluMLP,
    layer=SandwichLayer,
)
