"""Owns what a checkpoint says about rotary positions: the variant and its constants, in one normal form.

Only variants whose rotation is a function of the position alone are accepted: dynamic and longrope change the
rotation of old tokens as a sequence grows, which neither a KV cache nor a replay can honour.
"""

import math
import sys
from dataclasses import dataclass
from typing import Any

SUPPORTED = ("default", "linear", "llama3", "yarn")
# Beyond it a number is no length.
_MOST_POSITIONS = 1e15


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """Constants of one rotary variant; fields that a variant does not use keep their defaults."""

    rope_type: str
    theta: float
    factor: float = 1.0
    original_max_position_embeddings: int = 0
    # llama3
    low_freq_factor: float = 1.0
    high_freq_factor: float = 1.0
    # yarn; attention_factor scales both cosine and sine
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float = 1.0

    @classmethod
    def global_and_local(cls, raw: dict[str, Any], max_position_embeddings: int) -> tuple["RopeConfig", "RopeConfig"]:
        """What gemma3 gives its layers with full attention and those with a window, each a base of its own.

        transformers 4 writes `rope_theta`, `rope_scaling` and `rope_local_base_freq`, 5 one set by layer type.
        """
        _refuse_two(raw)
        sets = raw.get("rope_parameters") or {}
        if any(value is not None and not isinstance(value, dict) for value in sets.values()):
            raise ValueError("rope_parameters must be given by layer type (full_attention, sliding_attention)")
        full = sets.get("full_attention") or raw.get("rope_scaling") or {}
        local = sets.get("sliding_attention") or {}
        thetas = raw.get("rope_theta") or 1e6, raw.get("rope_local_base_freq") or 1e4
        return (
            cls.from_dict({"rope_parameters": full, "rope_theta": thetas[0]}, max_position_embeddings),
            cls.from_dict({"rope_parameters": local, "rope_theta": thetas[1]}, max_position_embeddings),
        )

    @classmethod
    def from_dict(cls, raw: dict[str, Any], max_position_embeddings: int) -> "RopeConfig":
        """Read the rope entries of a config.json. ValueError names what is missing or unsupported."""
        _refuse_two(raw)
        entry = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
        if any(isinstance(value, dict) for value in entry.values()):
            raise ValueError("rope_parameters that differ by layer type are not supported (supported: one set)")
        rope_type = entry.get("rope_type", entry.get("type", "default"))
        if rope_type not in SUPPORTED:
            raise ValueError(f"rope type {rope_type!r} is not supported (supported: {', '.join(SUPPORTED)})")
        partial = entry.get("partial_rotary_factor", raw.get("partial_rotary_factor"))
        if partial not in (None, 1, 1.0):
            raise ValueError(f"partial_rotary_factor {partial} is not supported (supported: 1.0)")
        theta = positive("rope theta", entry.get("rope_theta") or raw.get("rope_theta") or 10000.0)
        if rope_type == "default":
            return cls(rope_type=rope_type, theta=theta)
        original = positive(
            "rope original_max_position_embeddings",
            raw.get("original_max_position_embeddings")
            or entry.get("original_max_position_embeddings")
            or max_position_embeddings,
        )
        factor = entry.get("factor")
        if factor is None and rope_type == "yarn":
            factor = max_position_embeddings / original
        if rope_type == "llama3":
            return cls(
                rope_type=rope_type,
                theta=theta,
                factor=positive("rope factor", factor),
                original_max_position_embeddings=int(original),
                low_freq_factor=positive("rope low_freq_factor", entry.get("low_freq_factor")),
                high_freq_factor=positive("rope high_freq_factor", entry.get("high_freq_factor")),
            )
        if rope_type == "yarn":
            if theta <= 1:
                raise ValueError(f"rope theta must be more than 1 for yarn, found {theta}")
            return cls(
                rope_type=rope_type,
                theta=theta,
                factor=positive("rope factor", factor),
                original_max_position_embeddings=int(original),
                beta_fast=positive("rope beta_fast", entry.get("beta_fast") or 32.0),
                beta_slow=positive("rope beta_slow", entry.get("beta_slow") or 1.0),
                truncate=bool(entry.get("truncate", True)),
                attention_factor=_yarn_attention_factor(entry, positive("rope factor", factor)),
            )
        return cls(rope_type=rope_type, theta=theta, factor=positive("rope factor", factor))


def positive(name: str, value: Any) -> float:
    """`value` of a config.json as a number. ValueError if it is no positive one."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= sys.float_info.max:
        raise ValueError(f"{name} must be a positive number, found {value!r}")
    return float(value)


def scaled_positions(raw: dict[str, Any], max_position_embeddings: int) -> int:
    """How many positions the model has, as far as a config.json that `RopeConfig` accepts surely says.

    `launcher.positions` has the same rule, and why; a test compares them.
    """
    entry = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    entry = entry.get("full_attention") or entry
    factor = entry.get("factor")
    if entry.get("rope_type", entry.get("type")) not in ("linear", "yarn") or factor is None:
        return max_position_embeddings
    if original := raw.get("original_max_position_embeddings") or entry.get("original_max_position_embeddings"):
        return max(max_position_embeddings, int(min(original * factor, _MOST_POSITIONS)))
    trained = raw.get("max_sequence_length")
    trained = trained if isinstance(trained, int) else 0
    return max(max_position_embeddings, int(min(trained, max_position_embeddings * factor, _MOST_POSITIONS)))


def _refuse_two(raw: dict[str, Any]) -> None:
    """transformers 5 takes rope_scaling, or merges it into the other; 4 knows no other."""
    new, old = raw.get("rope_parameters"), raw.get("rope_scaling")
    for name, value in (("rope_parameters", new), ("rope_scaling", old)):
        if value is not None and not isinstance(value, dict):
            raise ValueError(f"{name} must be a set of names and values or null, found {value!r}")
    if new and old and new != old:
        raise ValueError("rope_parameters and rope_scaling differ; leave one of them out")


def _yarn_attention_factor(entry: dict[str, Any], factor: float) -> float:
    """The temperature of YaRN (arXiv 2309.00071, 3.4), or the ratio of two where a file gives both mscales."""

    def temperature(mscale: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0

    if entry.get("attention_factor") is not None:
        return float(entry["attention_factor"])
    if entry.get("mscale") and entry.get("mscale_all_dim"):
        return temperature(float(entry["mscale"])) / temperature(float(entry["mscale_all_dim"]))
    return temperature(1.0)
