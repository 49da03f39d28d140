import json
from pathlib import Path
from typing import Any

import pytest
from transformers import (
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    Qwen2Config,
    Qwen3Config,
)

from shard.model_config import ModelConfig

BASE: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 131,
    "hidden_size": 72,
    "intermediate_size": 100,
    "num_hidden_layers": 2,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 2048,
}


def test_old_and_new_spellings_of_rope_mean_the_same() -> None:
    scaling = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
    old = BASE | {"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", **scaling}}
    older = BASE | {"rope_theta": 5e5, "rope_scaling": {"type": "llama3", **scaling}}
    new = BASE | {"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, **scaling}}
    configs = [ModelConfig.from_dict(raw) for raw in (old, older, new)]
    assert configs[0] == configs[1] == configs[2]
    assert configs[0].ropes[0].theta == 5e5
    assert configs[0].ropes[0].high_freq_factor == 4.0


def test_defaults_are_those_of_the_family() -> None:
    llama = ModelConfig.from_dict(BASE)
    assert (llama.head_dim, llama.ropes[1].rope_type, llama.ropes[1].theta) == (8, "default", 10000.0)
    assert not llama.tie_word_embeddings
    assert ModelConfig.from_dict(BASE | {"model_type": "qwen3"}).head_dim == 128
    without_groups = {name: value for name, value in BASE.items() if name != "num_key_value_heads"}
    assert ModelConfig.from_dict(without_groups).num_kv_heads == 9


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ({"model_type": "llama"}, LlamaConfig()),
        ({"model_type": "mistral"}, MistralConfig()),
        ({"model_type": "mixtral"}, MixtralConfig()),
        ({"model_type": "qwen2"}, Qwen2Config()),
        ({"model_type": "qwen3"}, Qwen3Config()),
        ({"model_type": "gemma"}, GemmaConfig()),
        ({"model_type": "gemma2"}, Gemma2Config()),
        ({"model_type": "gemma3_text"}, Gemma3TextConfig()),
    ],
)
def test_what_a_file_leaves_out_is_as_in_the_reference(raw: dict[str, Any], expected: Any) -> None:
    """A file with sizes alone and one that spells out every default mean the same."""
    sizes = {name: value for name, value in BASE.items() if name != "model_type"} | {"num_hidden_layers": 12}
    spelled = expected.to_dict() | sizes | {"layer_types": None, "head_dim": getattr(expected, "head_dim", None)}
    if raw["model_type"] in ("llama", "mistral"):
        spelled["head_dim"] = None  # there it follows from the sizes
    assert ModelConfig.from_dict(raw | sizes) == ModelConfig.from_dict(spelled)


def windows(**raw: Any) -> tuple[int | None, ...]:
    return ModelConfig.from_dict(BASE | {"num_hidden_layers": 4} | raw).windows


def test_windows_follow_the_rules_of_the_families() -> None:
    kinds = ["full_attention", "sliding_attention", "full_attention", "sliding_attention"]
    assert windows(model_type="mistral", sliding_window=8) == (8,) * 4
    assert windows(model_type="mistral", sliding_window=None) == (None,) * 4
    assert windows(model_type="mixtral") == (None,) * 4
    assert windows(model_type="gemma2", sliding_window=8) == (8, None, 8, None)
    assert windows(model_type="gemma2", sliding_window=8, layer_types=kinds) == (None, 8, None, 8)
    assert windows(model_type="gemma3_text", sliding_window=8, sliding_window_pattern=3) == (8, 8, None, 8)
    for model_type in ("qwen2", "qwen3"):
        sliding = {"model_type": model_type, "sliding_window": 8}
        assert windows(**sliding) == (None,) * 4
        assert windows(**sliding, use_sliding_window=True, max_window_layers=3) == (None, None, None, 8)
        assert windows(**sliding, use_sliding_window=True, layer_types=kinds) == (None, 8, None, 8)


def test_old_and_new_spellings_of_gemma3s_ropes_mean_the_same() -> None:
    gemma = BASE | {"model_type": "gemma3_text", "num_hidden_layers": 6}
    scaling = {"rope_type": "linear", "factor": 8.0}
    old = gemma | {"rope_theta": 1e6, "rope_local_base_freq": 1e4, "rope_scaling": scaling}
    new = gemma | {
        "rope_parameters": {
            "full_attention": scaling | {"rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        }
    }
    ropes = ModelConfig.from_dict(old).ropes
    assert ropes == ModelConfig.from_dict(new).ropes
    assert [(rope.theta, rope.factor) for rope in ropes] == [(1e4, 1.0)] * 5 + [(1e6, 8.0)]


def test_the_first_gemmas_gelu_means_its_approximation() -> None:
    old = BASE | {"model_type": "gemma", "hidden_act": "gelu", "hidden_activation": None}
    assert ModelConfig.from_dict(old) == ModelConfig.from_dict(BASE | {"model_type": "gemma"})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"model_type": "mamba"},
            ["model_type 'mamba'", "gemma, gemma2, gemma3_text, llama, mistral, mixtral, qwen2, qwen3"],
        ),
        ({"model_type": "gemma3"}, ["model_type 'gemma3'", "only text models"]),
        ({"model_type": None}, ["model_type None"]),
        ({"hidden_act": "gelu"}, ["hidden_act 'gelu'", "silu"]),
        ({"sliding_window": 4096}, ["sliding_window 4096"]),
        ({"sliding_window": 4096, "use_sliding_window": True}, ["sliding_window 4096"]),
        ({"layer_types": ["full_attention", "sliding_attention"]}, ["layer_types", "llama", "all full_attention"]),
        ({"layer_types": ["full_attention", "linear_attention"]}, ["layer_types linear_attention"]),
        ({"layer_types": ["full_attention"]}, ["layer_types", "1", "num_hidden_layers is 2"]),
        ({"model_type": "mistral", "sliding_window": 0}, ["sliding_window", "0"]),
        ({"model_type": "mistral", "layer_types": ["full_attention"] * 2}, ["mistral", "all sliding_attention"]),
        ({"model_type": "qwen2", "layer_types": ["sliding_attention"] * 2}, ["use_sliding_window is off"]),
        ({"model_type": "mixtral", "num_experts_per_tok": 9}, ["num_experts_per_tok 9", "num_local_experts 8"]),
        ({"model_type": "gemma2", "hidden_activation": "gelu"}, ["hidden_activation 'gelu'", "gelu_pytorch_tanh"]),
        ({"model_type": "gemma2", "attn_logit_softcapping": -1}, ["attn_logit_softcapping", "-1"]),
        ({"model_type": "gemma", "use_bidirectional_attention": True}, ["use_bidirectional_attention"]),
        ({"model_type": "gemma3_text", "attn_logit_softcapping": 50.0}, ["attn_logit_softcapping"]),
        ({"model_type": "gemma3_text", "rope_parameters": {"rope_theta": 1e4}}, ["by layer type"]),
        ({"quantization_config": {"quant_method": "gptq"}}, ["quantization_config (gptq)"]),
        (
            {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
            ["rope type 'dynamic'", "default, linear, llama3, yarn"],
        ),
        ({"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4}}, ["rope type 'longrope'"]),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, ["differ by layer type"]),
        ({"rope_parameters": {"rope_type": "linear"}}, ["rope factor", "None"]),
        ({"partial_rotary_factor": 0.5}, ["partial_rotary_factor 0.5"]),
        ({"num_key_value_heads": 2}, ["num_attention_heads 9", "num_key_value_heads 2"]),
        (
            {"rope_scaling": {"rope_type": "linear", "factor": 2.0}, "rope_parameters": {"rope_theta": 1e4}},
            ["rope_parameters and rope_scaling differ"],
        ),
        (
            {
                "model_type": "gemma3_text",
                "rope_scaling": {"rope_type": "linear", "factor": 2.0},
                "rope_parameters": {"full_attention": {"rope_theta": 1e4}},
            },
            ["rope_parameters and rope_scaling differ"],
        ),
        ({"rope_scaling": "yarn"}, ["rope_scaling", "'yarn'"]),
        ({"rope_theta": -1}, ["rope theta", "-1"]),
        ({"rope_theta": 1.0, "rope_scaling": {"type": "yarn", "factor": 2.0}}, ["rope theta", "yarn", "1.0"]),
        (
            {"rope_scaling": {"type": "yarn", "factor": 2.0, "original_max_position_embeddings": -8}},
            ["rope original_max_position_embeddings", "-8"],
        ),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0, "beta_fast": -1}}, ["rope beta_fast", "-1"]),
        ({"rms_norm_eps": None}, ["rms_norm_eps", "None"]),
        ({"rms_norm_eps": float("nan")}, ["rms_norm_eps", "nan"]),
        ({"tie_word_embeddings": "false"}, ["tie_word_embeddings", "'false'"]),
        ({"model_type": "gemma2", "query_pre_attn_scalar": -4}, ["query_pre_attn_scalar", "-4"]),
        ({"num_key_value_heads": "3"}, ["num_key_value_heads", "'3'"]),
        ({"num_key_value_heads": -3}, ["num_key_value_heads", "-3"]),
        ({"vocab_size": None}, ["vocab_size", "None"]),
        ({"num_hidden_layers": "two"}, ["num_hidden_layers", "'two'"]),
        ({"num_hidden_layers": 10**12}, ["num_hidden_layers", "at most 10000"]),
        ({"vocab_size": 10**18}, ["vocab_size", "at most"]),
        ({"rope_theta": float("inf")}, ["rope theta", "inf"]),
        ({"rms_norm_eps": 10**400}, ["rms_norm_eps"]),
        ({"hidden_size": 70}, ["hidden_size 70", "num_attention_heads 9"]),
        ({"head_dim": 7}, ["head_dim 7"]),
    ],
)
def test_what_is_not_honoured_exactly_is_refused_by_name(change: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ValueError, match=r".") as error:
        ModelConfig.from_dict(BASE | change)
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"config\.json does not exist"):
        ModelConfig.from_folder(tmp_path)
    for change in ({"vocab_size": 0}, {"quantization_config": "gptq"}, {"layer_types": 7}):
        (tmp_path / "config.json").write_text(json.dumps(BASE | change))
        with pytest.raises(ValueError, match=r"config\.json"):
            ModelConfig.from_folder(tmp_path)
    for content in ("{", "[]"):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(ValueError, match=r"config\.json"):
            ModelConfig.from_folder(tmp_path)


def test_what_a_family_does_not_read_changes_nothing() -> None:
    others = {"query_pre_attn_scalar": 4, "final_logit_softcapping": 3.0, "attn_logit_softcapping": 3.0}
    for family in ("llama", "gemma"):
        plain = BASE | {"model_type": family}
        assert ModelConfig.from_dict(plain | others) == ModelConfig.from_dict(plain)
