"""Owns what a checkpoint's config.json means, and refuses what this service would not honour exactly.

Reads the files of transformers 4 (`rope_theta`, `rope_scaling`) and 5 (`rope_parameters`). Knows nothing of tensors.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shard.rope_config import RopeConfig, positive, scaled_positions

# The reference's defaults of what a file may leave out, by model_type. Its keys are the families that are supported.
DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": 4096},
    "mixtral": {"rms_norm_eps": 1e-5, "rope_theta": 1e6, "num_local_experts": 8, "num_experts_per_tok": 2},
    "qwen2": {"sliding_window": 4096, "use_sliding_window": False, "max_window_layers": 28},
    "qwen3": {"head_dim": 128, "sliding_window": 4096, "use_sliding_window": False, "max_window_layers": 28},
    "gemma": {"head_dim": 256, "tie_word_embeddings": True, "hidden_act": "gelu_pytorch_tanh"},
    "gemma2": {
        "head_dim": 256,
        "tie_word_embeddings": True,
        "hidden_activation": "gelu_pytorch_tanh",
        "sliding_window": 4096,
        "query_pre_attn_scalar": 256,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
    },
    "gemma3_text": {
        "head_dim": 256,
        "tie_word_embeddings": True,
        "hidden_activation": "gelu_pytorch_tanh",
        "sliding_window": 4096,
        "sliding_window_pattern": 6,
        "query_pre_attn_scalar": 256,
    },
}
# families whose queries, keys, values and outputs have a bias where `attention_bias` says so; others never read it
ATTENTION_BIAS = ("llama", "qwen3", "gemma", "gemma2", "gemma3_text")
GEMMAS = ("gemma", "gemma2", "gemma3_text")
FULL, SLIDING = "full_attention", "sliding_attention"


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The full, unsharded sizes of a decoder and the constants of its family."""

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int  # of each expert, where there are any
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_positions: int
    rms_norm_eps: float
    tie_word_embeddings: bool
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    ropes: tuple[RopeConfig, ...]  # by layer
    windows: tuple[int | None, ...]  # by layer: how many positions a row sees, itself included; None: all
    attention_scale: float  # of the products of queries and keys
    attention_softcap: float | None  # of the scaled products
    logit_softcap: float | None
    embedding_scale: float | None
    num_experts: int  # 0: one plain MLP
    num_experts_per_token: int

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
        except (TypeError, AttributeError, ArithmeticError) as error:
            raise ValueError(f"{file} is malformed: {error}") from error

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> "ModelConfig":
        """Read the content of a config.json. ValueError names what is missing, malformed or unsupported."""
        model_type = raw.get("model_type")
        _refuse_other_families(model_type)
        assert isinstance(model_type, str)
        raw = DEFAULTS[model_type] | raw
        _refuse_unsupported(raw)
        hidden_size, num_heads = _size(raw, "hidden_size"), _size(raw, "num_attention_heads")
        num_kv_heads = _size(raw, "num_key_value_heads") if raw.get("num_key_value_heads") else num_heads
        if num_heads % num_kv_heads:
            raise ValueError(f"num_attention_heads {num_heads} is not a multiple of num_key_value_heads {num_kv_heads}")
        head_dim = _head_dim(raw, hidden_size, num_heads)
        is_gemma, is_sparse = model_type in GEMMAS, model_type == "mixtral"
        attention_bias = _is_set(raw, "attention_bias") and model_type in ATTENTION_BIAS
        query_scalar = raw.get("query_pre_attn_scalar") if model_type in ("gemma2", "gemma3_text") else None
        layer_types = _layer_types(raw)
        max_position_embeddings = _size(raw, "max_position_embeddings")
        ropes = _ropes(raw, max_position_embeddings)
        return cls(
            model_type=model_type,
            vocab_size=_size(raw, "vocab_size"),
            hidden_size=hidden_size,
            intermediate_size=_size(raw, "intermediate_size"),
            num_layers=len(layer_types),
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            max_positions=scaled_positions(raw, max_position_embeddings),
            rms_norm_eps=positive("rms_norm_eps", raw.get("rms_norm_eps", 1e-6)),
            tie_word_embeddings=_is_set(raw, "tie_word_embeddings"),
            qkv_bias=attention_bias or model_type == "qwen2",
            o_bias=attention_bias,
            mlp_bias=_is_set(raw, "mlp_bias") and model_type == "llama",
            ropes=tuple(ropes[kind] for kind in layer_types),
            windows=tuple(_size(raw, "sliding_window") if kind == SLIDING else None for kind in layer_types),
            attention_scale=positive("query_pre_attn_scalar", query_scalar or head_dim) ** -0.5,
            attention_softcap=_softcap(raw, "attn_logit_softcapping"),
            logit_softcap=_softcap(raw, "final_logit_softcapping"),
            embedding_scale=math.sqrt(hidden_size) if is_gemma else None,
            num_experts=_size(raw, "num_local_experts") if is_sparse else 0,
            num_experts_per_token=_size(raw, "num_experts_per_tok") if is_sparse else 0,
        )


def _size(raw: dict[str, Any], name: str, *, most: int = 2**31 - 1) -> int:
    value = raw.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= most:
        raise ValueError(f"{name} must be a positive integer, at most {most}, found {value!r}")
    return value


def _is_set(raw: dict[str, Any], name: str) -> bool:
    value = raw.get(name)
    if value is not None and not isinstance(value, bool):
        raise ValueError(f"{name} must be true or false, found {value!r}")
    return bool(value)


def _softcap(raw: dict[str, Any], name: str) -> float | None:
    """The first gemma has none, whatever its file says."""
    value = raw.get(name) if raw["model_type"] in ("gemma2", "gemma3_text") else None
    return None if value is None else positive(name, value)


def _head_dim(raw: dict[str, Any], hidden_size: int, num_heads: int) -> int:
    if not raw.get("head_dim"):
        if hidden_size % num_heads:
            raise ValueError(f"hidden_size {hidden_size} is not a multiple of num_attention_heads {num_heads}")
        raw = raw | {"head_dim": hidden_size // num_heads}
    head_dim = _size(raw, "head_dim")
    if head_dim % 2:
        raise ValueError(f"head_dim {head_dim} is odd; rotary positions need an even one")
    return head_dim


def _layer_types(raw: dict[str, Any]) -> list[str]:
    """What each layer sees, FULL or SLIDING: as the file lists it, or by the rule of the family."""
    num_layers = _size(raw, "num_hidden_layers", most=10_000)
    usual = [_usual_layer_type(raw, layer) for layer in range(num_layers)]
    listed = raw.get("layer_types") or usual
    if other := sorted({str(kind) for kind in listed} - {FULL, SLIDING}):
        raise ValueError(f"layer_types {', '.join(other)} are not supported (supported: {FULL}, {SLIDING})")
    if len(listed) != num_layers:
        raise ValueError(f"layer_types names {len(listed)} layers, num_hidden_layers is {num_layers}")
    if raw["model_type"] in ("llama", "mistral", "mixtral", "gemma") and listed != usual:
        raise ValueError(f"layer_types are not those of {raw['model_type']}, whose layers are all {usual[0]} here")
    if raw["model_type"] in ("qwen2", "qwen3") and SLIDING in listed and not raw["use_sliding_window"]:
        raise ValueError(f"layer_types name {SLIDING}, but use_sliding_window is off")
    return list(listed)


def _usual_layer_type(raw: dict[str, Any], layer: int) -> str:
    match raw["model_type"]:
        case "mistral" | "mixtral":
            slides = raw.get("sliding_window") is not None
        case "qwen2" | "qwen3":
            slides = bool(raw["use_sliding_window"] and raw["sliding_window"] and layer >= raw["max_window_layers"])
        case "gemma2":
            slides = layer % 2 == 0
        case "gemma3_text":
            slides = (layer + 1) % _size(raw, "sliding_window_pattern") != 0
        case _:
            slides = False
    return SLIDING if slides else FULL


def _ropes(raw: dict[str, Any], max_position_embeddings: int) -> dict[str, RopeConfig]:
    if raw["model_type"] == "gemma3_text":
        full, sliding = RopeConfig.global_and_local(raw, max_position_embeddings)
        return {FULL: full, SLIDING: sliding}
    rope = RopeConfig.from_dict(raw, max_position_embeddings)
    return {FULL: rope, SLIDING: rope}


def _refuse_other_families(model_type: Any) -> None:
    if model_type in DEFAULTS:
        return
    hint = "; of gemma3 only text models, gemma3_text, are served" if model_type == "gemma3" else ""
    raise ValueError(f"model_type {model_type!r} is not supported (supported: {', '.join(sorted(DEFAULTS))}){hint}")


def _refuse_unsupported(raw: dict[str, Any]) -> None:
    model_type = raw["model_type"]
    # Gemma's first files say "gelu" and mean the approximation that it was trained with.
    key, accepted = {
        "gemma": ("hidden_act", ("gelu_pytorch_tanh", "gelu")),
        "gemma2": ("hidden_activation", ("gelu_pytorch_tanh",)),
        "gemma3_text": ("hidden_activation", ("gelu_pytorch_tanh",)),
    }.get(model_type, ("hidden_act", ("silu",)))
    if raw.get(key, accepted[0]) not in accepted:
        raise ValueError(f"{key} {raw[key]!r} is not supported (supported: {', '.join(accepted)})")
    if model_type == "gemma" and raw.get("hidden_activation") not in (None, "gelu_pytorch_tanh"):
        raise ValueError(
            f"hidden_activation {raw['hidden_activation']!r} is not supported (supported: gelu_pytorch_tanh)"
        )
    if model_type in ("llama", "gemma") and raw.get("sliding_window") and raw.get("use_sliding_window", True):
        raise ValueError(f"sliding_window {raw['sliding_window']} is not supported for {model_type}")
    if raw.get("use_bidirectional_attention"):
        raise ValueError("use_bidirectional_attention is not supported (supported: causal attention)")
    if model_type == "gemma3_text" and raw.get("attn_logit_softcapping"):
        raise ValueError("attn_logit_softcapping is not supported for gemma3_text (supported: null)")
    if model_type == "mixtral" and _size(raw, "num_experts_per_tok") > _size(raw, "num_local_experts"):
        chosen, experts = raw["num_experts_per_tok"], raw["num_local_experts"]
        raise ValueError(f"num_experts_per_tok {chosen} is more than num_local_experts {experts}")
    if raw.get("quantization_config"):
        method = raw["quantization_config"].get("quant_method", "unknown")
        raise ValueError(f"quantization_config ({method}) is not supported (supported: unquantized weights)")
