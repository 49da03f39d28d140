"""The shard's configuration: one frozen object, made from its flags. The launcher passes them."""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from shard.layers.quantize import Quantization


class ConfigError(ValueError):
    """A setting that a restart cannot mend. The message names the flag and what to do."""


@dataclass(frozen=True, slots=True)
class ShardConfig:
    model_path: Path
    uds_path: str
    run_dir: Path
    dtype: str
    quantize: Quantization | None
    kv_cache_dtype: Literal["fp8"] | None
    # None: as many as there are Medusa heads, 0 without; auto: as far as drafts of any method were found to pay.
    speculate: int | Literal["auto"] | None
    medusa_path: Path | None
    speculation_method: str
    # None: what the device and the method make sensible.
    tree_size: int | None
    tree_width: int | None
    max_batch_draft_tokens: int
    # None: the router decides.
    draft_min_probability: float | None
    max_total_tokens: int
    max_batch_size: int
    max_batch_prefill_tokens: int
    # KV tokens; 0: from the memory that is left.
    max_batch_total_tokens: int
    block_size: int
    memory_fraction: float
    # 0: take what torch finds, if anything.
    num_gpus: int
    threads: int
    collective_timeout: float
    weights_note: str
    json_output: bool
    log_level: str

    def validate(self) -> None:
        """Raises ConfigError for settings that do not go together."""
        # Every sequence may decode in one step, and a prompt chunk must still get on.
        needed = self.max_batch_size + self.block_size
        if self.max_batch_prefill_tokens < needed:
            raise ConfigError(
                f"--max-batch-prefill-tokens {self.max_batch_prefill_tokens} is too small: {self.max_batch_size} "
                f"sequences and a block of {self.block_size} need {needed}; raise it or lower --max-batch-size"
            )
        if self.speculation_method == "ngram" and self.medusa_path is not None:
            raise ConfigError("--speculation-method ngram uses no heads, but --medusa-path names some; leave one out")
        if 0 < self.max_batch_total_tokens < self.max_total_tokens:
            raise ConfigError(
                f"too few KV blocks: --max-batch-total-tokens {self.max_batch_total_tokens} holds less than one "
                f"request may have (--max-total-tokens {self.max_total_tokens}); raise the first or lower the second"
            )


def parse_args(argv: list[str]) -> ShardConfig:
    parser = argparse.ArgumentParser(
        prog="shard",
        description="One rank of the sharded model. Rank and world size are in the environment, as torchrun sets them.",
    )
    parser.add_argument("--model-path", type=Path, required=True, help="folder with config.json and safetensors files")
    parser.add_argument("--uds-path", required=True, help="rank r listens on the Unix socket UDS_PATH-r")
    parser.add_argument("--run-dir", type=Path, required=True, help="where an error that no restart mends is written")
    parser.add_argument("--dtype", choices=["bfloat16", "float16", "float32", "float64"], default="bfloat16")
    parser.add_argument(
        "--quantize", choices=["int8", "fp8"], default=None, help="the matrices, in memory; unset: not at all"
    )
    parser.add_argument("--kv-cache-dtype", choices=["fp8"], default=None, help="of committed keys and values")
    parser.add_argument(
        "--speculate",
        type=lambda text: text if text == "auto" else int(text),
        default=None,
        help="tokens that drafts reach ahead; 0: off, auto: as far as it pays",
    )
    parser.add_argument("--medusa-path", type=Path, default=None, help="folder with Medusa heads; unset: the model's")
    parser.add_argument("--speculation-method", choices=["auto", "ngram", "medusa", "hybrid"], default="auto")
    parser.add_argument("--tree-size", type=int, default=None, help="most drafts of a sequence in a step")
    parser.add_argument("--tree-width", type=int, default=None, help="tokens taken of each head; 1: a chain")
    parser.add_argument("--max-batch-draft-tokens", type=int, default=96, help="most drafts of a step")
    parser.add_argument(
        "--draft-min-probability", type=float, default=None, help="of every draft; unset: the router decides by costs"
    )
    parser.add_argument("--max-total-tokens", type=int, required=True, help="most tokens of a sequence")
    parser.add_argument("--max-batch-size", type=int, default=32, help="most sequences at once")
    parser.add_argument(
        "--max-batch-prefill-tokens", type=int, default=512, help="most rows of a step without its drafts"
    )
    parser.add_argument("--max-batch-total-tokens", type=int, default=0, help="tokens the KV cache holds; 0: what fits")
    parser.add_argument("--block-size", type=int, default=16, help="tokens of a KV block")
    parser.add_argument("--memory-fraction", type=float, default=0.9, help="of the GPU's memory")
    parser.add_argument(
        "--num-gpus", type=int, default=0, help="that the driver shows, so that torch must be able to use them"
    )
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of this rank")
    parser.add_argument("--collective-timeout", type=float, default=60.0, help="seconds before a stuck rank leaves")
    parser.add_argument("--weights-note", default="", help="where the weights came from, for ModelInfo")
    parser.add_argument("--json-output", action="store_true")
    parser.add_argument("--log-level", default="info")
    return ShardConfig(**vars(parser.parse_args(argv)))
