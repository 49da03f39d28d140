import json
from pathlib import Path
from typing import Any

import pytest

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
    assert configs[0].rope.theta == 5e5
    assert configs[0].rope.high_freq_factor == 4.0


def test_defaults_are_those_of_the_family() -> None:
    llama = ModelConfig.from_dict(BASE)
    assert (llama.head_dim, llama.rope.rope_type, llama.rope.theta) == (8, "default", 10000.0)
    assert not llama.tie_word_embeddings
    assert ModelConfig.from_dict(BASE | {"model_type": "qwen3"}).head_dim == 128
    without_groups = {name: value for name, value in BASE.items() if name != "num_key_value_heads"}
    assert ModelConfig.from_dict(without_groups).num_kv_heads == 9


def test_a_window_that_is_switched_off_is_none() -> None:
    ModelConfig.from_dict(BASE | {"model_type": "qwen3", "sliding_window": 4096, "use_sliding_window": False})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_type": "mamba"}, ["model_type 'mamba'", "llama, qwen3"]),
        ({"model_type": None}, ["model_type None"]),
        ({"hidden_act": "gelu"}, ["hidden_act 'gelu'", "silu"]),
        ({"sliding_window": 4096}, ["sliding_window 4096"]),
        ({"sliding_window": 4096, "use_sliding_window": True}, ["sliding_window 4096"]),
        ({"layer_types": ["full_attention", "sliding_attention"]}, ["layer_types sliding_attention"]),
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
        ({"vocab_size": None}, ["vocab_size", "None"]),
        ({"num_hidden_layers": "two"}, ["num_hidden_layers", "'two'"]),
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
    for content in ("{", "[]", json.dumps(BASE | {"vocab_size": 0})):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(ValueError, match=r"config\.json"):
            ModelConfig.from_folder(tmp_path)
