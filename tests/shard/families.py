"""Models of every family, with what its config.json may say: name -> model type, and what is changed of it."""

from typing import Any

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "rope_theta": 10000.0}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
    "rope_theta": 500000.0,
}
# small caps, so that they bend what these models compute
GEMMA_2_SCALES = {"attn_logit_softcapping": 3.0, "final_logit_softcapping": 6.0, "query_pre_attn_scalar": 40}
GEMMA_3_LAYERS = {
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    "num_layers": 3,
    "sliding_window": 10,
    "query_pre_attn_scalar": 24,
}
GEMMA_3_ROPES = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama tied": ("llama", {"tie_word_embeddings": True}),
    "llama biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama one kv head": ("llama", {"kv_heads": 1}),
    "llama as many kv heads": ("llama", {"kv_heads": 9}),
    "llama linear rope": (
        "llama",
        {"rope_parameters": {"rope_type": "linear", "factor": 2.5, "rope_theta": 10000.0}},
    ),
    "llama llama3 rope": ("llama", {"rope_parameters": LLAMA3}),
    "llama yarn rope": ("llama", {"rope_parameters": YARN}),
    "llama yarn rope with its own scale": ("llama", {"rope_parameters": YARN | {"attention_factor": 1.3}}),
    "llama yarn rope untruncated": ("llama", {"rope_parameters": YARN | {"truncate": False, "beta_fast": 8.0}}),
    "qwen3": ("qwen3", {}),
    "qwen3 tied, biased, yarn": (
        "qwen3",
        {"tie_word_embeddings": True, "attention_bias": True, "rope_parameters": YARN, "hidden": 64, "heads": 4,
         "kv_heads": 2, "head_dim": 32},
    ),
    "qwen3 with a window": ("qwen3", {"use_sliding_window": True, "sliding_window": 11, "max_window_layers": 1}),
    "mistral": ("mistral", {"sliding_window": 13}),
    "mistral without a window": ("mistral", {"sliding_window": None}),
    "mixtral": ("mixtral", {"num_local_experts": 5, "num_experts_per_tok": 2}),
    "mixtral with a window": ("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 3, "sliding_window": 9}),
    "qwen2": ("qwen2", {"head_dim": 8}),
    "qwen2 tied, with windows": (
        "qwen2",
        {"head_dim": 8, "tie_word_embeddings": True, "use_sliding_window": True, "sliding_window": 12,
         "max_window_layers": 1, "num_layers": 3},
    ),
    "gemma": ("gemma", {"tie_word_embeddings": True}),
    "gemma untied, biased": ("gemma", {"attention_bias": True}),
    "gemma2": ("gemma2", {"sliding_window": 10} | GEMMA_2_SCALES),
    "gemma2 without caps": (
        "gemma2", {"sliding_window": 10, "attn_logit_softcapping": None, "final_logit_softcapping": None}
    ),
    "gemma3": ("gemma3_text", GEMMA_3_LAYERS),
    "gemma3 with a scaled global rope": (
        "gemma3_text", {"seed": 1, "rope_parameters": GEMMA_3_ROPES, "final_logit_softcapping": 4.0} | GEMMA_3_LAYERS
    ),
}  # fmt: skip
