"""How many bytes one decode step reads: of weights, by the safetensors files, and of keys and values."""

import json
import math
from pathlib import Path

_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4, "float64": 8}


def bytes_read_per_step(folder: Path, dtype: str, *, is_int8: bool = False) -> int:
    """All parameters once in the served `dtype`; of an embedding that is not also the output matrix only a row.

    `is_int8`: the matrices of the layers are a byte a value, and a scale in float32 for each output.

    Header format: 8 bytes of length, little endian, then JSON (github.com/huggingface/safetensors, README).
    """
    shapes: dict[str, list[int]] = {}
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        shapes |= {name: entry["shape"] for name, entry in header.items() if name != "__metadata__"}
    if "lm_head.weight" in shapes:
        del shapes["model.embed_tokens.weight"]
    return sum(
        math.prod(shape) + 4 * math.prod(shape[:-1])
        if is_int8 and ".layers." in name and len(shape) > 1
        else math.prod(shape) * _BYTES[dtype]
        for name, shape in shapes.items()
    )


def kv_bytes_per_token(folder: Path, dtype: str) -> int:
    """Keys and values of one token in all layers; a window that makes a layer read fewer is not considered."""
    config = json.loads((folder / "config.json").read_text())
    num_heads = config["num_attention_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // num_heads
    values = config["num_hidden_layers"] * config.get("num_key_value_heads", num_heads) * head_dim
    return int(2 * values * _BYTES[dtype])
