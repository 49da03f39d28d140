"""Owns what qwen3 adds to llama: queries and keys are normalised per head before they are rotated."""

import torch

from shard.distributed import TPGroup
from shard.model_config import ModelConfig
from shard.models import llama

NAMES = {
    **llama.NAMES,
    "layers.*.attention.q_norm": ("model.layers.*.self_attn.q_norm",),
    "layers.*.attention.k_norm": ("model.layers.*.self_attn.k_norm",),
}
IGNORED = llama.IGNORED


def build(config: ModelConfig, *, group: TPGroup, dtype: torch.dtype, device: torch.device) -> llama.Llama:
    """A qwen3 model without weights."""
    return llama.Llama(config, group=group, dtype=dtype, device=device, qk_norm=True)
