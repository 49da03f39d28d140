"""The tables of what each system reached and of where our time goes. Pure."""

import statistics
from collections.abc import Iterable, Sequence

from bench.comparison import select, systems_of
from bench.measure import Turn
from bench.metrics import NO_STEPS
from bench.prompts import WORKLOADS
from bench.sample import Sample
from bench.statistic import median, percentile, table


def speed_table(turns: Sequence[Turn]) -> str:
    header = ["batch, workload", "system", "tokens/s", "first token ms", "between tokens ms", "p95"]
    header += ["tokens/step", "of limit", "turns"]
    rows = []
    for batch in sorted({turn.batch for turn in turns}):
        for workload in WORKLOADS:
            for system in systems_of(turns):
                taken = select(turns, batch, workload, system)
                if taken:
                    rows.append([f"{batch} {workload}", system.name, *_cells(taken), str(len(taken))])
    return table(header, rows)


def _cells(turns: Sequence[Turn]) -> list[str]:
    samples = samples_of(turns)
    between = [seconds for sample in samples for seconds in sample.inter_token_s()]
    num_tokens, num_steps = sum(s.num_tokens for s in samples), sum(s.num_steps for s in samples)
    return [
        median([turn.tokens_per_s for turn in turns]),
        median([s.time_to_first_token_s for s in samples], scale=1e3, digits=0),
        median(between, scale=1e3),
        f"{percentile(between, 95) * 1e3:.1f}",
        f"{num_tokens / num_steps:.2f}",
        f"{median([turn.of_limit for turn in turns], scale=100, digits=0)} %",
    ]


def time_table(turns: Sequence[Turn]) -> str:
    """Of the service alone: steps on the shard, what the client sees of them, CPU time beside them."""
    header = ["batch", "system", "steps", "step ms", "at the client ms", "shard busy"]
    header += ["step at bandwidth", "router CPU ms/step", "client CPU ms/step"]
    rows = []
    for batch in sorted({turn.batch for turn in turns}):
        for system in (system for system in systems_of(turns) if system.is_ours):
            taken = [turn for turn in turns if (turn.batch, turn.system) == (batch, system)]
            steps = sum((turn.steps for turn in taken), start=NO_STEPS)
            step_s = (steps.seconds - steps.prompt_seconds) / max(1, steps.num - steps.prompt_num)
            rows.append(
                [
                    str(batch),
                    system.name,
                    str(steps.num),
                    f"{step_s * 1e3:.2f}",
                    median([gap for s in samples_of(taken) for gap in s.gaps_s()], scale=1e3, digits=2),
                    f"{100 * steps.seconds / sum(turn.wall_s for turn in taken):.0f} %",
                    f"{100 / step_s / statistics.median(turn.limit for turn in taken):.0f} %",
                    f"{1e3 * sum(turn.router_cpu_s for turn in taken) / steps.num:.2f}",
                    f"{1e3 * sum(turn.client_cpu_s for turn in taken) / steps.num:.2f}",
                ]
            )
    return table(header, rows)


def sameness(turns: Sequence[Turn]) -> str:
    """How many answers at batch 1 are the same tokens as ours without speculation, by system."""
    first: dict[str, dict[str, tuple[int, ...]]] = {}
    for turn in turns:
        if turn.batch == 1:
            answers = first.setdefault(turn.system.name, {})
            answers.setdefault(turn.samples[0].prompt_id, turn.samples[0].token_ids)
    base = first.pop(next(s.name for s in systems_of(turns) if s.is_ours and not s.speculates))
    counts = ", ".join(
        f"{name} {sum(base.get(prompt) == answer for prompt, answer in answers.items())}"
        for name, answers in first.items()
    )
    return (
        f"The same tokens as the service without speculation, of {len(base)} answers: {counts}. In 16 bit the number "
        "of rows in a product changes its rounding, and a near tie may fall the other way."
    )


def samples_of(turns: Iterable[Turn]) -> list[Sample]:
    return [sample for turn in turns for sample in turn.samples]
