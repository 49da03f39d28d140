"""Owns mistral, which is llama with a window, and mixtral, whose MLP is a mixture of experts."""

from shard.models import llama
from shard.models.decoder import Family
from shard.models.moe import SparseMoE

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
MIXTRAL = Family(MIXTRAL_NAMES, mlp=SparseMoE)
