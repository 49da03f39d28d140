"""The benchmark's configuration: one frozen object, made from its flags."""

import argparse
import os
from dataclasses import dataclass
from pathlib import Path

from launcher.machine import usable_cores
from launcher.options import ENV_PREFIX


@dataclass(frozen=True, slots=True)
class BenchConfig:
    model_id: str | None
    threads: int
    rounds: int
    prompts_per_workload: int
    max_new_tokens: int
    concurrency: tuple[int, ...]
    speculate: int
    output: Path | None
    command: str


def parse_args(argv: list[str]) -> BenchConfig:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Measures the service on this machine, with speculation off and on, and transformers beside it.",
    )
    parser.add_argument("--model-id", help="as the launcher's; unset: its default model")
    parser.add_argument(
        "--threads", type=positive, default=usable_cores(), help="of the shard and of transformers (%(default)s)"
    )
    parser.add_argument("--rounds", type=positive, default=3, help="times that everything is measured (%(default)s)")
    parser.add_argument("--speculate", type=positive, default=3, help="drafts per step where it is on (%(default)s)")
    parser.add_argument("--quick", action="store_true", help="one round, fewer prompts and tokens: about two minutes")
    parser.add_argument("--output", type=Path, help="write the report to this file too, as Markdown")
    options = parser.parse_args(argv)
    return BenchConfig(
        model_id=options.model_id,
        threads=options.threads,
        rounds=1 if options.quick else options.rounds,
        prompts_per_workload=2 if options.quick else 8,
        max_new_tokens=64 if options.quick else 128,
        concurrency=(8, 32),
        speculate=options.speculate,
        output=options.output,
        command=" ".join(["python -m bench", *argv]),
    )


def child_environ(threads: int) -> dict[str, str]:
    """Of every measured process: the same number of threads, no look at the network, no flags but those we give."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ENV_PREFIX)}
    return {**kept, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, not {text!r}")
    return int(text)
