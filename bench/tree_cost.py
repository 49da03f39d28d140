"""`python -m bench.tree_cost`: what checking a tree of drafts costs, relative to a step without drafts, at batch 1.

The shard's own steps in this process, without router and wire: the same sequence is decoded with trees of each size in
turns, and the median of the times of each size is divided by that of a plain step. Nothing that is drafted is right, so
every step begins at the same length but for one token.
"""

import argparse
import statistics
import sys
from pathlib import Path
from typing import Any

import torch

from bench.config import positive
from bench.plots import SETTINGS
from launcher.logs import LogWriter
from launcher.machine import usable_cores
from launcher.resolve import ModelRequest, resolve
from shard.config import ShardConfig, parse_args
from shard.model_runner import ModelRunner
from shard.plan import NewSequence, Sampling, SequenceStep, StepPlan
from shard.rank import Rank, build_rank
from shard.speculation import DraftTree

SIZES = (0, 1, 2, 4, 8, 16, 32, 64)
_BRANCHES = 3


class Steps:
    """Steps of one sequence, whose drafts are ours and always wrong."""

    def __init__(self, runner: ModelRunner, *, vocab_size: int, context: int, max_tokens: int, block_size: int) -> None:
        self._runner = runner
        self._vocab_size = vocab_size
        self._step_id = 0
        new = NewSequence(
            slot=0,
            token_ids=[100 + i % 1000 for i in range(context)],
            sampling=Sampling(temperature=0.0, top_k=0, top_p=1.0, min_p=0.0, seed=0),
            max_num_tokens=max_tokens,
            stop_token_ids=[],
            logprobs=False,
        )
        blocks = list(range(1, -(-max_tokens // block_size) + 1))
        self._run(SequenceStep(0, blocks, 0, context, verify=0, propose=0, propose_depth=0), [new])

    def duration_ms(self, num_drafts: int) -> float:
        if num_drafts:
            states = self._runner.states
            # The last of the vocabulary, which no text asks for; one that were right would make the sequence longer.
            wrong = self._vocab_size - 1 - torch.arange(num_drafts)[None]
            parents = torch.tensor([[i // _BRANCHES for i in range(num_drafts)]])
            pad = states.draft_token_ids.shape[1] - num_drafts
            states.set_drafts(
                torch.tensor([0]),
                DraftTree(
                    torch.nn.functional.pad(wrong, (0, pad)),
                    torch.nn.functional.pad(parents, (0, pad)),
                    torch.tensor([num_drafts]),
                ),
            )
        return self._run(SequenceStep(0, [], 0, 0, verify=num_drafts, propose=0, propose_depth=0), [])

    def _run(self, step: SequenceStep, new: list[NewSequence]) -> float:
        self._step_id += 1
        return self._runner.execute(StepPlan(self._step_id, [], new, [step])).duration_ns * 1e-6


def measure(rank: Rank, config: ShardConfig, *, context: int, rounds: int) -> dict[int, float]:
    """Milliseconds of a step by number of drafts."""
    steps = Steps(
        rank.runner,
        vocab_size=rank.info.vocab_size,
        context=context,
        max_tokens=config.max_total_tokens,
        block_size=config.block_size,
    )
    times: dict[int, list[float]] = {size: [] for size in SIZES}
    for _ in range(rounds):
        for size in SIZES:
            times[size].append(steps.duration_ms(size))
    return {size: statistics.median(values[1:]) for size, values in times.items()}


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
        most = options.context + len(SIZES) * options.rounds + 2
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
