"""Owns what a checkpoint's config.json means, and refuses what this service would not honour exactly.

Reads the files of transformers 4 (`rope_theta`, `rope_scaling`) and 5 (`rope_parameters`). Knows nothing of tensors.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shard.rope_config import RopeConfig

# model_type -> head_dim where the file names none (None: hidden_size / heads). The reference's own defaults.
DEFAULT_HEAD_DIM: dict[str, int | None] = {"llama": None, "qwen3": 128}


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The full, unsharded sizes of a decoder and the switches of its family."""

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_position_embeddings: int
    rms_norm_eps: float
    tie_word_embeddings: bool
    attention_bias: bool
    mlp_bias: bool
    rope: RopeConfig

    @classmethod
    def from_folder(cls, path: str | Path) -> "ModelConfig":
        """Read `path`/config.json. ValueError names what is missing, malformed or unsupported."""
        file = Path(path) / "config.json"
        try:
            raw = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ValueError(f"{file} does not exist; a model folder needs its config.json") from None
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{file} is not valid JSON: {error}") from error
        if not isinstance(raw, dict):
            raise ValueError(f"{file} does not hold a JSON object")
        try:
            return cls.from_dict(raw)
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from error

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> "ModelConfig":
        """Read the content of a config.json."""
        _refuse_unsupported(raw)
        hidden_size, num_heads = _size(raw, "hidden_size"), _size(raw, "num_attention_heads")
        num_kv_heads = raw.get("num_key_value_heads") or num_heads
        if num_heads % num_kv_heads:
            raise ValueError(f"num_attention_heads {num_heads} is not a multiple of num_key_value_heads {num_kv_heads}")
        head_dim = raw.get("head_dim") or DEFAULT_HEAD_DIM[raw["model_type"]]
        if head_dim is None:
            if hidden_size % num_heads:
                raise ValueError(f"hidden_size {hidden_size} is not a multiple of num_attention_heads {num_heads}")
            head_dim = hidden_size // num_heads
        if head_dim % 2:
            raise ValueError(f"head_dim {head_dim} is odd; rotary positions need an even one")
        max_position_embeddings = _size(raw, "max_position_embeddings")
        return cls(
            model_type=raw["model_type"],
            vocab_size=_size(raw, "vocab_size"),
            hidden_size=hidden_size,
            intermediate_size=_size(raw, "intermediate_size"),
            num_layers=_size(raw, "num_hidden_layers"),
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            max_position_embeddings=max_position_embeddings,
            rms_norm_eps=float(raw.get("rms_norm_eps", 1e-6)),
            tie_word_embeddings=bool(raw.get("tie_word_embeddings", False)),
            attention_bias=bool(raw.get("attention_bias", False)),
            mlp_bias=bool(raw.get("mlp_bias", False)) and raw["model_type"] == "llama",
            rope=RopeConfig.from_dict(raw, max_position_embeddings),
        )


def _size(raw: dict[str, Any], name: str) -> int:
    value = raw.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be a positive integer, found {value!r}")
    return value


def _refuse_unsupported(raw: dict[str, Any]) -> None:
    supported = ", ".join(sorted(DEFAULT_HEAD_DIM))
    if raw.get("model_type") not in DEFAULT_HEAD_DIM:
        raise ValueError(f"model_type {raw.get('model_type')!r} is not supported (supported: {supported})")
    if raw.get("hidden_act", "silu") != "silu":
        raise ValueError(f"hidden_act {raw['hidden_act']!r} is not supported (supported: silu)")
    # qwen3 writes a window size even where `use_sliding_window` switches it off
    if raw.get("sliding_window") and raw.get("use_sliding_window", True):
        raise ValueError(f"sliding_window {raw['sliding_window']} is not supported (supported: full attention)")
    other = sorted(set(raw.get("layer_types") or ()) - {"full_attention"})
    if other:
        raise ValueError(f"layer_types {', '.join(other)} are not supported (supported: full_attention)")
    if raw.get("quantization_config"):
        method = raw["quantization_config"].get("quant_method", "unknown")
        raise ValueError(f"quantization_config ({method}) is not supported (supported: unquantized weights)")
