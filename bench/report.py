"""From the turns that were taken to the page that is printed. Pure but for the date."""

import statistics
from collections.abc import Iterable
from datetime import date

from bench.config import BenchConfig
from bench.machine import Machine
from bench.measure import OFF, ON, PEER, Turn
from bench.metrics import Steps
from bench.prompts import WORKLOADS
from bench.sample import Sample
from bench.statistic import median, percentile, spread, table
from drafthouse.v1 import generation_pb2

# What issue and README promise of batch 1 against transformers: (speculation, workload, at least).
_REQUIRED = (*((OFF, workload, 1.5) for workload in WORKLOADS), (ON, "copy", 3.0))
_NAMES = {OFF: "drafthouse", ON: "drafthouse, speculation", PEER: "transformers"}


def report(
    config: BenchConfig,
    *,
    machine: Machine,
    info: generation_pb2.GetModelInfoResponse,
    turns: list[Turn],
    start_s: float,
) -> str:
    sections = [
        _heading(config, machine, info, start_s),
        "## Speed\n\n" + _speed(turns, machine),
        "## Against transformers.generate, one prompt at a time\n\n" + _ratios(turns),
        "## Where the time goes\n\n" + _time(turns, machine),
        _sameness(turns),
    ]
    return "\n\n".join(sections) + "\n"


def _heading(config: BenchConfig, machine: Machine, info: generation_pb2.GetModelInfoResponse, start_s: float) -> str:
    kernels = ", ".join(f"{name} {kernel}" for name, kernel in sorted(info.kernels.items()))
    return "\n".join(
        [
            f"# {info.model_id}, {info.dtype}, {date.today().isoformat()}",
            "",
            f"- `{config.command}`; {config.rounds} rounds, {config.prompts_per_workload} prompts per workload, "
            f"{config.max_new_tokens} new tokens, greedy, {config.threads} threads, "
            f"at most {config.speculate} drafts",
            f"- {machine.description}",
            f"- weights {info.weights or 'as stored'}; kernels {kernels or 'plain'}; ready in {start_s:.1f} s",
            f"- read bandwidth {machine.bandwidth / 1e9:.1f} GB/s, weights {machine.weights_bytes / 1e6:.0f} MB "
            f"a step: limit {machine.limit:.0f} tokens/s for one sequence without speculation",
        ]
    )


def _speed(turns: list[Turn], machine: Machine) -> str:
    header = ["batch, workload", "system", "tokens/s", "first token ms", "between tokens ms", "p95"]
    header += ["tokens/step", "of limit"]
    rows = []
    for batch in sorted({turn.batch for turn in turns}):
        for workload in WORKLOADS:
            for system in (PEER, OFF, ON):
                taken = [t for t in turns if (t.batch, t.workload, t.system) == (batch, workload, system)]
                if taken:
                    rows.append([f"{batch} {workload}", _NAMES[system], *_speed_cells(taken, machine)])
    return table(header, rows)


def _speed_cells(turns: list[Turn], machine: Machine) -> list[str]:
    samples = _samples(turns)
    between = [seconds for sample in samples for seconds in sample.inter_token_s()]
    mean_rate = len(between) / sum(between)
    num_tokens, num_steps = sum(s.num_tokens for s in samples), sum(s.num_steps for s in samples)
    return [
        median([sum(s.num_tokens for s in turn.samples) / turn.wall_s for turn in turns]),
        median([s.time_to_first_token_s for s in samples], scale=1e3, digits=0),
        median(between, scale=1e3),
        f"{percentile(between, 95) * 1e3:.1f}",
        f"{num_tokens / num_steps:.2f}",
        f"{100 * mean_rate / machine.limit:.0f} %",
    ]


def _ratios(turns: list[Turn]) -> str:
    single = [turn for turn in turns if turn.batch == 1]
    theirs = _by_prompt(single, PEER)
    rows = []
    for system in (OFF, ON):
        ours = _by_prompt(single, system)
        for workload in WORKLOADS:
            # The n-th answers to a prompt were taken one after the other.
            pairs = [
                (a, b)
                for prompt_id, answers in ours.items()
                for a, b in zip(answers, theirs[prompt_id], strict=True)
                if a.workload == workload
            ]
            whole = [a.tokens_per_s / b.tokens_per_s for a, b in pairs]
            decode = [a.decode_tokens_per_s / b.decode_tokens_per_s for a, b in pairs]
            first = [b.time_to_first_token_s / a.time_to_first_token_s for a, b in pairs]
            rows.append([workload, _NAMES[system], spread(whole), spread(decode), spread(first)])
            rows[-1].append(_verdict(system, workload, whole))
    return table(["workload", "system", "whole answer ×", "decoding ×", "first token ×", "required"], rows)


def _verdict(system: str, workload: str, ratios: list[float]) -> str:
    for required_system, required_workload, least in _REQUIRED:
        if (system, workload) == (required_system, required_workload):
            return f"{least:g} {'met' if statistics.median(ratios) >= least else 'MISSED'}"
    return ""


def _time(turns: list[Turn], machine: Machine) -> str:
    header = ["batch", "speculation", "steps", "step ms", "at the client ms", "shard busy"]
    header += ["step at bandwidth", "router CPU ms/step", "client CPU ms/step"]
    rows = []
    for batch in sorted({turn.batch for turn in turns}):
        for system in (OFF, ON):
            taken = [turn for turn in turns if (turn.batch, turn.system) == (batch, system)]
            steps = sum((turn.steps for turn in taken), start=Steps(0, 0.0, 0, 0.0))
            step_s = (steps.seconds - steps.prompt_seconds) / max(1, steps.num - steps.prompt_num)
            rows.append(
                [
                    str(batch),
                    system,
                    str(steps.num),
                    f"{step_s * 1e3:.2f}",
                    median([gap for s in _samples(taken) for gap in s.gaps_s()], scale=1e3, digits=2),
                    f"{100 * steps.seconds / sum(turn.wall_s for turn in taken):.0f} %",
                    f"{100 / (step_s * machine.limit):.0f} %",
                    f"{1e3 * sum(turn.router_cpu_s for turn in taken) / steps.num:.2f}",
                    f"{1e3 * sum(turn.client_cpu_s for turn in taken) / steps.num:.2f}",
                ]
            )
    return table(header, rows)


def _sameness(turns: list[Turn]) -> str:
    single = [turn for turn in turns if turn.batch == 1]
    off, on, theirs = (_by_prompt(single, system) for system in (OFF, ON, PEER))
    same_on = sum(on[prompt_id][0].token_ids == answers[0].token_ids for prompt_id, answers in off.items())
    same_peer = sum(theirs[prompt_id][0].token_ids == answers[0].token_ids for prompt_id, answers in off.items())
    return (
        f"Of {len(off)} answers, {same_on} are the same tokens with speculation and without, {same_peer} the same as "
        "transformers'. In 16 bit the number of rows in a product changes its rounding, and a near tie may fall "
        "the other way."
    )


def _samples(turns: Iterable[Turn]) -> list[Sample]:
    return [sample for turn in turns for sample in turn.samples]


def _by_prompt(turns: list[Turn], system: str) -> dict[str, list[Sample]]:
    answers: dict[str, list[Sample]] = {}
    for sample in _samples(turn for turn in turns if turn.system == system):
        answers.setdefault(sample.prompt_id, []).append(sample)
    return answers
