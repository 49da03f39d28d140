"""The benchmark's configuration: one frozen object, made from its flags."""

import argparse
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bench.peers.catalogue import PEERS, TRANSFORMERS, VLLM
from launcher.machine import usable_cores
from launcher.options import without_variables

# The one starts for longer than the quick form may take, the other is never near the best.
_NOT_QUICK = {VLLM.name, TRANSFORMERS.name}
_ROOT = Path(__file__).parents[1]
_RESULTS = Path(__file__).with_name("RESULTS.md")


@dataclass(frozen=True, slots=True)
class BenchConfig:
    """`slow_turn_s`: a peer that takes longer over a batch is not asked at that batch size or above it again.

    `never_slower_pairs` of bench.never_slower follow the comparison, 0 leaves it out.
    """

    model_id: str | None
    threads: int
    rounds: int
    prompts_per_workload: int
    max_new_tokens: int
    concurrency: tuple[int, ...]
    speculate: str
    quantize: str | None
    lookup: int
    peers: tuple[str, ...]
    may_install: bool
    slow_turn_s: float
    never_slower_pairs: int
    output: Path | None
    command: str


def parse_args(argv: list[str]) -> BenchConfig:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Measures the service on this machine, with speculation off and on, and its peers beside it.",
    )
    parser.add_argument("--model-id", help="as the launcher's; unset: its default model")
    parser.add_argument(
        "--threads", type=positive, default=usable_cores(), help="of the shard and of every peer (%(default)s)"
    )
    parser.add_argument("--rounds", type=positive, default=3, help="times that everything is measured (%(default)s)")
    parser.add_argument("--speculate", default="auto", help="the launcher's, where it is on (%(default)s)")
    parser.add_argument(
        "--quantize", choices=["int8"], help="the launcher's; peers then have their weights in 8 bits too"
    )
    parser.add_argument(
        "--lookup", type=positive, default=3, help="tokens that the peers' prompt lookup drafts (%(default)s)"
    )
    parser.add_argument(
        "--peers",
        nargs="*",
        choices=list(PEERS),
        help="beside the service (all; if quick, those that start fast and are fast)",
    )
    parser.add_argument(
        "--pairs", type=int, default=8, help="of bench.never_slower, which follows; 0 leaves it out (%(default)s)"
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="one round, fewer prompts and tokens, 8 at once, peers that are installed: about two minutes",
    )
    parser.add_argument(
        "--output", type=Path, help=f"the results file ({_RESULTS.name} beside the benchmark, if not quick)"
    )
    options = parser.parse_args(argv)
    quick = options.quick
    return BenchConfig(
        model_id=options.model_id,
        threads=options.threads,
        rounds=1 if quick else options.rounds,
        prompts_per_workload=2 if quick else 8,
        max_new_tokens=64 if quick else 128,
        concurrency=(8,) if quick else (8, 32),
        speculate=options.speculate,
        quantize=options.quantize,
        lookup=options.lookup,
        peers=tuple(name for name in PEERS if not (quick and name in _NOT_QUICK))
        if options.peers is None
        else tuple(options.peers),
        may_install=not quick,
        slow_turn_s=30.0 if quick else 180.0,
        never_slower_pairs=0 if quick else options.pairs,
        output=options.output or (None if quick else _RESULTS),
        command=" ".join(["python -m bench", *argv]),
    )


def child_environ(threads: int) -> dict[str, str]:
    """Of every measured process: the same number of threads, no look at the network, no flags but those we give."""
    kept = without_variables(os.environ)
    # This package is not installed, and children look for nothing where they are started (launcher/exec_child.py).
    kept["PYTHONPATH"] = os.pathsep.join(filter(None, (str(_ROOT), kept.get("PYTHONPATH"))))
    return {**kept, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}


def peer_environ(threads: int, more: Mapping[str, str]) -> dict[str, str]:
    """The same without the paths of this project, which a peer must not import."""
    environ = {**child_environ(threads), **more}
    return {name: value for name, value in environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, not {text!r}")
    return int(text)
