"""`python -m bench.perplexity --model-path FOLDER --text FILE`: what weights of 8 bits cost in quality.

The shard's own model over windows of a text, each read from its own beginning: how likely the text's tokens are with
each kind of weights, and how often the likeliest token is that of 16 bits.
"""

import argparse
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import torch
from tokenizers import Tokenizer
from torch import Tensor

from bench.config import positive
from bench.statistic import table
from shard.attention_groups import Span
from shard.distributed import TPGroup
from shard.forward_batch import ForwardBatch
from shard.kv_cache import KVCache
from shard.layers.quantize import Quantization
from shard.model_config import ModelConfig
from shard.models import load_model

_BLOCK_SIZE = 16


@dataclass(frozen=True, slots=True)
class Reading:
    """Of each token but the windows' first ones: minus its log-probability, and the likeliest token, both [T]."""

    surprise: Tensor
    likeliest: Tensor

    @property
    def perplexity(self) -> float:
        return math.exp(float(self.surprise.mean()))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.perplexity", description=__doc__)
    parser.add_argument("--model-path", type=Path, required=True, help="folder with config.json and safetensors files")
    parser.add_argument("--text", type=Path, required=True, help="a text file")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16", help="(%(default)s)")
    parser.add_argument("--window", type=positive, default=1024, help="tokens read together (%(default)s)")
    parser.add_argument("--windows", type=positive, default=16, help="how many at most (%(default)s)")
    options = parser.parse_args()
    tokenizer = Tokenizer.from_file(str(options.model_path / "tokenizer.json"))
    token_ids = tokenizer.encode(options.text.read_text(), add_special_tokens=False).ids
    windows = [token_ids[i : i + options.window] for i in range(0, len(token_ids), options.window)][: options.windows]
    dtype: torch.dtype = getattr(torch, options.dtype)
    kinds: tuple[Quantization | None, ...] = (None, *get_args(Quantization))
    readings = {quantize: read(options.model_path, windows, dtype=dtype, quantize=quantize) for quantize in kinds}
    print(
        f"{len(readings[None].surprise)} tokens of {options.text.name}, windows of {options.window}, {options.dtype}\n"
    )
    print(table(["weights", "perplexity", "of 16 bits", "same likeliest token"], list(_rows(readings))))


def read(folder: Path, windows: list[list[int]], *, dtype: torch.dtype, quantize: Quantization | None) -> Reading:
    config = ModelConfig.from_folder(folder)
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    model = load_model(config, folder, group=TPGroup(), dtype=dtype, device=device, quantize=quantize)
    num_blocks = -(-max(map(len, windows)) // _BLOCK_SIZE)
    cache = KVCache(
        num_layers=config.num_layers,
        num_blocks=num_blocks,
        block_size=_BLOCK_SIZE,
        num_kv_heads=model.num_kv_heads,
        head_dim=config.head_dim,
        dtype=dtype,
        device=device,
        max_step_rows=1,
    )
    surprises, likeliest = [], []
    for window in windows:
        token_ids = torch.tensor(window, device=device)
        batch = ForwardBatch.build(
            token_ids=token_ids,
            positions=torch.arange(len(window), device=device),
            spans=[Span(len(window), list(range(1, num_blocks + 1)), direct=True)],
            cache=cache,
        )
        with torch.inference_mode():
            logits = model.logits(model.forward(batch, cache)[:-1])
        surprises.append(torch.nn.functional.cross_entropy(logits, token_ids[1:], reduction="none").cpu())
        likeliest.append(logits.argmax(-1).cpu())
    return Reading(torch.cat(surprises).double(), torch.cat(likeliest))


def _rows(readings: dict[Quantization | None, Reading]) -> Iterator[list[str]]:
    exact = readings[None]
    for quantize, reading in readings.items():
        same = float((reading.likeliest == exact.likeliest).double().mean())
        ratio = reading.perplexity / exact.perplexity
        yield [quantize or "16 bit", f"{reading.perplexity:.3f}", f"{ratio:.4f}", f"{same:.2%}"]


if __name__ == "__main__":
    main()
