"""How many bytes of weights one decode step reads, from the headers of the safetensors files."""

import json
import math
from pathlib import Path

_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4, "float64": 8}


def bytes_read_per_step(folder: Path, dtype: str) -> int:
    """All parameters once in the served `dtype`; of an embedding that is not also the output matrix only a row.

    Header format: 8 bytes of length, little endian, then JSON (github.com/huggingface/safetensors, README).
    """
    sizes: dict[str, int] = {}
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        sizes |= {name: math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__"}
    if "lm_head.weight" in sizes:
        del sizes["model.embed_tokens.weight"]
    return sum(sizes.values()) * _BYTES[dtype]
