"""The shard's configuration: one frozen object, made from its flags. The launcher passes them."""

import argparse
from dataclasses import dataclass
from pathlib import Path


class ConfigError(ValueError):
    """A setting that a restart cannot mend. The message names the flag and what to do."""


@dataclass(frozen=True, slots=True)
class ShardConfig:
    model_path: Path
    uds_path: str
    run_dir: Path
    dtype: str
    speculate: int
    max_total_tokens: int
    max_batch_size: int
    max_batch_prefill_tokens: int
    # KV tokens; 0: from the memory that is left.
    max_batch_total_tokens: int
    block_size: int
    memory_fraction: float
    threads: int
    collective_timeout: float
    weights_note: str
    json_output: bool
    log_level: str

    def validate(self) -> None:
        """Raises ConfigError for settings that do not go together."""
        # Every sequence may decode at the full draft length in one step, and a prompt chunk must still get on.
        needed = self.max_batch_size * (1 + self.speculate) + self.block_size
        if self.max_batch_prefill_tokens < needed:
            raise ConfigError(
                f"--max-batch-prefill-tokens {self.max_batch_prefill_tokens} is too small: {self.max_batch_size} "
                f"sequences with {self.speculate} drafts each and a block of {self.block_size} need {needed}; raise it "
                "or lower --max-batch-size or --speculate"
            )
        if 0 < self.max_batch_total_tokens < self.max_total_tokens:
            raise ConfigError(
                f"too few KV blocks: --max-batch-total-tokens {self.max_batch_total_tokens} holds less than one "
                f"request may have (--max-total-tokens {self.max_total_tokens}); raise the first or lower the second"
            )


def parse_args(argv: list[str] | None = None) -> ShardConfig:
    parser = argparse.ArgumentParser(
        prog="shard", description="One rank of the sharded model. Started by torchrun, which sets rank and world size."
    )
    parser.add_argument("--model-path", type=Path, required=True, help="folder with config.json and safetensors files")
    parser.add_argument("--uds-path", required=True, help="rank r listens on the Unix socket UDS_PATH-r")
    parser.add_argument("--run-dir", type=Path, required=True, help="where an error that no restart mends is written")
    parser.add_argument("--dtype", choices=["bfloat16", "float16", "float32", "float64"], default="bfloat16")
    parser.add_argument("--speculate", type=int, default=0, help="most draft tokens per sequence and step")
    parser.add_argument("--max-total-tokens", type=int, required=True, help="most tokens of a sequence")
    parser.add_argument("--max-batch-size", type=int, default=32, help="most sequences at once")
    parser.add_argument("--max-batch-prefill-tokens", type=int, default=512, help="most rows of a step")
    parser.add_argument("--max-batch-total-tokens", type=int, default=0, help="tokens the KV cache holds; 0: what fits")
    parser.add_argument("--block-size", type=int, default=16, help="tokens of a KV block")
    parser.add_argument("--memory-fraction", type=float, default=0.9, help="of the GPU's memory")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of this rank")
    parser.add_argument("--collective-timeout", type=float, default=60.0, help="seconds before a stuck rank leaves")
    parser.add_argument("--weights-note", default="", help="where the weights came from, for ModelInfo")
    parser.add_argument("--json-output", action="store_true")
    parser.add_argument("--log-level", default="info")
    return ShardConfig(**vars(parser.parse_args(argv)))
