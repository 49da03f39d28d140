"""How many positions a model has, by its config.json: all that is known of it before the shards read it."""

from collections.abc import Mapping
from typing import Any

# Beyond it a number is no length.
_MOST = 1e15


def max_positions(config: Mapping[str, Any]) -> int | None:
    """As far as the file surely says; None where it does not. `shard.rope_config` has the same rule.

    Files disagree whether max_position_embeddings is the length before linear or yarn scaling (Qwen, Vicuna) or after
    it (DeepSeek, gemma3). Where they name the length before as well, it times the factor is reached for certain;
    Vicuna names the one after. llama3 is left alone: its factor is not how much longer the model got.
    """
    plain = config.get("max_position_embeddings")
    if not isinstance(plain, int) or plain > _MOST:
        return None
    rope = config.get("rope_parameters") or config.get("rope_scaling")
    if isinstance(rope, dict) and isinstance(rope.get("full_attention"), dict):
        rope = rope["full_attention"]
    if not isinstance(rope, dict) or rope.get("rope_type", rope.get("type")) not in ("linear", "yarn"):
        return plain
    factor = _number(rope.get("factor"))
    original = _number(config.get("original_max_position_embeddings") or rope.get("original_max_position_embeddings"))
    trained = config.get("max_sequence_length")
    if factor is None:
        return plain
    if original is not None:
        return max(plain, int(min(original * factor, _MOST)))
    return max(plain, int(min(trained if isinstance(trained, int) else 0, plain * factor, _MOST)))


def _number(value: object) -> float | None:
    """Anything else is for the shards to refuse."""
    return min(value, _MOST) if isinstance(value, int | float) and value > 0 else None
