"""From the turns that were taken to the page that is printed. Pure but for the date."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date

from bench.comparison import compare, comparison_table, limit_shares, verdicts
from bench.config import BenchConfig
from bench.machine import Machine
from bench.measure import Turn
from bench.peers.process import About
from bench.prompts import WORKLOADS
from bench.report_speed import sameness, speed_table, time_table
from bench.statistic import table
from bench.systems import System
from drafthouse.v1 import generation_pb2


@dataclass(frozen=True, slots=True)
class Run:
    """All that the page says. `absent`: why a peer took no part; `notes`: what else a reader must know of the turns."""

    config: BenchConfig
    machine: Machine
    info: generation_pb2.GetModelInfoResponse
    start_s: float
    turns: Sequence[Turn]
    peers: Mapping[System, About]
    absent: Mapping[str, str]
    notes: Sequence[str]


def report(run: Run, plots: Sequence[str] = (), never_slower: str = "") -> str:
    """Markdown. `plots` are links to pictures, `never_slower` is the text of bench.never_slower."""
    sections = [
        _heading(run),
        "### Verdicts\n\n" + verdicts(run.turns),
        "### Against the best peer\n\n" + comparison_table(compare(run.turns)),
        "### Speed\n\n" + speed_table(run.turns),
        "### Share of the bandwidth limit, one sequence without speculation\n\n" + _limit_table(run),
        never_slower,
        "### Where the time goes\n\n" + time_table(run.turns),
        sameness(run.turns),
        "### Plots\n\n" + "\n".join(plots) if plots else "",
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _heading(run: Run) -> str:
    config, machine, info = run.config, run.machine, run.info
    limits = [turn.limit for turn in run.turns if turn.batch == 1]
    kernels = ", ".join(f"{name} {kernel}" for name, kernel in sorted(info.kernels.items()))
    peers = {s.peer: f"{s.peer} {a.version} ({a.dtype}, ready in {a.start_s:.0f} s)" for s, a in run.peers.items()}
    lines = [
        f"## {info.model_id}, {info.dtype}, {date.today().isoformat()}",
        "",
        f"- `{config.command}`; rounds {config.rounds}, {config.prompts_per_workload} prompts per workload, "
        f"{config.max_new_tokens} new tokens, greedy, {config.threads} threads, "
        f"--speculate {config.speculate}; peers look up {config.lookup}",
        f"- {machine.description}",
        f"- weights {info.weights or 'as stored'}; kernels {kernels or 'plain'}; ready in {run.start_s:.1f} s",
        f"- a step reads {machine.weights_bytes / 1e6:.0f} MB of weights and {machine.kv_bytes / 1e3:.0f} kB a token "
        f"of context: the memory allowed {_range(limits)} steps/s of one sequence around its turns",
        f"- peers: {', '.join(peers.values()) or 'none'}",
        *(f"- **{name} takes no turns**: {reason}" for name, reason in run.absent.items()),
        *(f"- {note}" for note in run.notes),
    ]
    return "\n".join(lines)


def _limit_table(run: Run) -> str:
    shares = limit_shares(run.turns)
    rows = [[name, *(_percent(by.get(workload)) for workload in WORKLOADS)] for name, by in shares.items()]
    return table(["system", *WORKLOADS], rows)


def _range(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.0f} ({min(values):.0f}–{max(values):.0f})"


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.0f} %"
