"""Owns the llama family: the decoder as it is, and the names that most checkpoints share."""

from shard.models.decoder import Family

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

FAMILY = Family(NAMES)
