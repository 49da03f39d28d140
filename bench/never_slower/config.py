"""The configuration of bench.never_slower: one frozen object, made from its flags."""

import argparse
import shlex
from dataclasses import dataclass
from pathlib import Path

from bench.config import positive
from bench.prompts import RANDOM, WORKLOADS
from launcher.machine import usable_cores

_DESCRIPTION = """Speculation on over off through the real server, at each number of requests at once; with --fixed what
the server chooses over fixed numbers of drafts."""
CONCURRENCY = (1, 2, 4, 8, 16, 32, 64)
FIXED_CONCURRENCY = (1, 8)
# New tokens of a request by concurrency: enough steps for a ratio, and a run of minutes.
_NEW_TOKENS = {1: 96, 2: 96, 4: 96, 8: 64, 16: 64, 32: 48, 64: 32}
_LEAST_NEW_TOKENS = 32
# So many times the pairs where they do not settle a point.
_MORE = 3


@dataclass(frozen=True, slots=True)
class NeverSlowerConfig:
    """`speculate` None is the server's own default; `fixed` are the K of servers that check all their drafts always.

    A point that `pairs` do not settle takes as many again, up to `most_pairs`.
    """

    model_id: str | None
    threads: int
    speculate: str | None
    pairs: int
    most_pairs: int
    concurrency: tuple[int, ...]
    workloads: tuple[str, ...]
    new_tokens: int | None
    flags: tuple[str, ...]
    fixed: tuple[int, ...]
    plots: Path | None = None

    def num_new_tokens(self, concurrency: int) -> int:
        """Of each request."""
        return self.new_tokens or _NEW_TOKENS.get(concurrency, _LEAST_NEW_TOKENS)

    @property
    def server_flags(self) -> list[str]:
        """Of every server that is measured."""
        return [f"--max-batch-size={max(*CONCURRENCY, *self.concurrency)}", *self.flags]


def parse_args(argv: list[str]) -> NeverSlowerConfig:
    parser = argparse.ArgumentParser(prog="python -m bench.never_slower", description=_DESCRIPTION)
    parser.add_argument("--model-id", help="as the launcher's; unset: its default model")
    parser.add_argument("--threads", type=positive, default=usable_cores(), help="of the shard (%(default)s)")
    parser.add_argument("--speculate", help="as the launcher's; unset: its default, all heads")
    parser.add_argument("--pairs", type=positive, default=8, help="of runs with and without (%(default)s)")
    parser.add_argument(
        "--most-pairs", type=positive, help="of a point that is not settled before; unset: three times as many"
    )
    parser.add_argument(
        "--concurrency", type=positive, nargs="+", help="requests at once; unset: 1 to 64, with --fixed 1 and 8"
    )
    parser.add_argument("--workloads", nargs="+", choices=[*WORKLOADS, RANDOM], default=[*WORKLOADS, RANDOM])
    parser.add_argument("--new-tokens", type=positive, help="of each request; unset: fewer the more are at once")
    parser.add_argument("--flags", default="", help="more of the launcher's, as one word in quotes")
    parser.add_argument(
        "--fixed", type=positive, nargs="*", default=[], help="compare with servers that always check K drafts"
    )
    parser.add_argument("--plots", type=Path, help="folder that the picture is written to")
    options = parser.parse_args(argv)
    if options.fixed and (options.plots or options.most_pairs):
        parser.error("--plots and --most-pairs are for speculation on over off; --fixed does not measure that")
    if options.most_pairs is not None and options.most_pairs < options.pairs:
        parser.error(f"--most-pairs {options.most_pairs} is less than --pairs {options.pairs}")
    return NeverSlowerConfig(
        model_id=options.model_id,
        threads=options.threads,
        speculate=options.speculate,
        pairs=options.pairs,
        most_pairs=options.pairs if options.fixed else options.most_pairs or _MORE * options.pairs,
        concurrency=tuple(options.concurrency or (FIXED_CONCURRENCY if options.fixed else CONCURRENCY)),
        workloads=tuple(options.workloads),
        new_tokens=options.new_tokens,
        flags=tuple(shlex.split(options.flags)),
        fixed=tuple(options.fixed),
        plots=options.plots,
    )
