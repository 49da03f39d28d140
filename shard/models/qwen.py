"""Owns qwen2, which is llama with a bias on queries, keys and values, and qwen3, which normalises them instead."""

from shard.models import llama
from shard.models.blocks import QKNormAttention
from shard.models.decoder import Family

QK_NORM_NAMES = {
    "layers.*.attention.q_norm": ("model.layers.*.self_attn.q_norm",),
    "layers.*.attention.k_norm": ("model.layers.*.self_attn.k_norm",),
}

# the bias is the configuration's
QWEN2 = llama.FAMILY
QWEN3 = Family(llama.NAMES | QK_NORM_NAMES, attention=QKNormAttention)
