"""`python -m bench.tree_cost`: what checking a tree of drafts costs, relative to a step without drafts, at batch 1.

The shard's own steps in this process, without router and wire: the same made-up sequence is decoded with trees of each
size in turns, and the median of the times of each size is divided by that of a plain step. Nothing that is drafted is
right, so every step begins at the same length but for one token.
"""

import argparse
import statistics
import sys
from pathlib import Path
from typing import Any

from bench.config import positive
from bench.errors import told_to_user
from bench.plots import SETTINGS
from launcher.logs import LogWriter
from launcher.machine import usable_cores
from launcher.resolve import ModelRequest, resolve
from shard.config import ShardConfig, parse_args
from shard.made_up import MadeUpSteps
from shard.rank import Rank, build_rank
from shard.speculation import Proposal
from shard.speculation.drafter import SpeculationSizes

SIZES = (0, 1, 2, 4, 8, 16, 32, 64)
# Of the trees.
_DEPTH = 3


def measure(rank: Rank, config: ShardConfig, *, context: int, rounds: int) -> dict[int, float]:
    """Milliseconds of a step by number of drafts."""
    steps = MadeUpSteps(
        rank.runner,
        config,
        sizes=SpeculationSizes(num_speculative_tokens=_DEPTH, tree_size=max(SIZES), num_heads=0, tree_width=1),
    )
    steps.enter(1, context=context, room=_room(rounds))
    times: dict[int, list[float]] = {size: [] for size in SIZES}
    for _ in range(rounds):
        for size in SIZES:
            times[size].append(steps.decode([size], Proposal.NONE).duration_ns * 1e-6)
    steps.forget()
    return {size: statistics.median(values[1:]) for size, values in times.items()}


def _room(rounds: int) -> int:
    """Tokens behind the context: one of it, one of each step, and the deepest drafts of the last."""
    return 1 + len(SIZES) * rounds + _DEPTH


def plot(curves: dict[str, dict[int, float]], path: Path, title: str) -> None:
    """Needs matplotlib (`pip install '.[bench]'`)."""
    from matplotlib import pyplot, rc_context

    with rc_context(SETTINGS):
        _plot(pyplot, curves, path, title)


def _plot(pyplot: Any, curves: dict[str, dict[int, float]], path: Path, title: str) -> None:
    figure, axes = pyplot.subplots(figsize=(6.4, 3.6))
    for name, curve in curves.items():
        sizes = [size for size in curve if size]
        axes.plot(sizes, [curve[size] / curve[0] for size in sizes], marker="o", label=name)
    axes.set_xscale("log", base=2)
    axes.set_xticks([size for size in SIZES if size], [str(size) for size in SIZES if size])
    axes.set_xlabel("drafts in the tree")
    axes.set_ylabel("time of a step, plain decode = 1")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.set_title(title, fontsize=10)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


@told_to_user()
def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.tree_cost", description=__doc__)
    parser.add_argument("--model-id", help="as the launcher's; unset: its default model")
    parser.add_argument("--dtype", nargs="+", default=["bfloat16", "float32"])
    parser.add_argument("--context", type=positive, default=256)
    parser.add_argument("--rounds", type=positive, default=15)
    parser.add_argument("--threads", type=positive, default=usable_cores())
    parser.add_argument("--plot", type=Path, help="write a picture of the curves")
    options = parser.parse_args()
    curves: dict[str, dict[int, float]] = {}
    for dtype in options.dtype:
        request = ModelRequest(options.model_id, revision=None, dtype=dtype, hub_cache=None)
        folder = resolve(request, LogWriter(level="warning", json_output=False, stream=sys.stderr)).path
        most = options.context + _room(options.rounds) + 1
        config = parse_args(
            [
                f"--model-path={folder}",
                "--uds-path=unused",
                "--run-dir=unused",
                f"--dtype={dtype}",
                f"--speculate={max(SIZES)}",
                "--speculation-method=ngram",
                f"--max-total-tokens={most}",
                "--max-batch-size=1",
                f"--max-batch-prefill-tokens={most}",
                f"--threads={options.threads}",
            ]
        )
        rank = build_rank(config)
        curves[dtype] = measure(rank, config, context=options.context, rounds=options.rounds)
        plain = curves[dtype][0]
        kernels = ", ".join(sorted(set(rank.info.kernels.values())))
        print(f"{dtype} ({kernels}), context {options.context}: plain step {plain:.1f} ms")
        print("  " + "  ".join(f"{size}: {curves[dtype][size] / plain:.2f}" for size in SIZES if size))
    if options.plot is not None:
        plot(curves, options.plot, f"Checking drafts at batch 1, context {options.context}, {options.threads} threads")


if __name__ == "__main__":
    main()
