"""Owns mistral, which is llama with a window, and mixtral, whose MLP is a mixture of experts."""

import torch

from shard.distributed import TPGroup
from shard.layers.moe import SparseMoE
from shard.model_config import ModelConfig
from shard.models import llama
from shard.models.decoder import Family


def sparse_mlp(config: ModelConfig, *, group: TPGroup, dtype: torch.dtype) -> SparseMoE:
    """The experts of one mixtral layer."""
    return SparseMoE(
        config.hidden_size,
        config.intermediate_size,
        num_experts=config.num_experts,
        top_k=config.num_experts_per_token,
        group=group,
        dtype=dtype,
    )


MIXTRAL_NAMES = {name: target for name, target in llama.NAMES.items() if ".mlp." not in name} | {
    "layers.*.mlp.router": ("model.layers.*.block_sparse_moe.gate",),
    "layers.*.mlp.experts.*.gate_up_proj": (
        "model.layers.*.block_sparse_moe.experts.*.w1",
        "model.layers.*.block_sparse_moe.experts.*.w3",
    ),
    "layers.*.mlp.experts.*.down_proj": ("model.layers.*.block_sparse_moe.experts.*.w2",),
}

# the window is the configuration's
MISTRAL = llama.FAMILY
MIXTRAL = Family(MIXTRAL_NAMES, mlp=sparse_mlp)
