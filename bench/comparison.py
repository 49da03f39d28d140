"""Ours against the best peer: speeds, ratios within turns that followed each other, verdicts. Pure."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from bench.measure import Turn
from bench.prompts import WORKLOADS
from bench.statistic import spread, table
from bench.systems import System

# What the project promises: against the best peer, and the goal; without speculation, of the machine's limit.
_AHEAD, _GOAL, _OF_LIMIT = 1.0, 1.5, 0.6


@dataclass(frozen=True, slots=True)
class Comparison:
    """Ratios above 1 are in our favour; `speed` one per place, `first_token` of the medians of each place."""

    ours: System
    best: System
    batch: int
    workload: str
    speed: tuple[float, ...]
    first_token: tuple[float, ...]


def select(turns: Sequence[Turn], batch: int, workload: str, system: System) -> list[Turn]:
    return [t for t in turns if (t.batch, t.workload, t.system) == (batch, workload, system)]


def systems_of(turns: Sequence[Turn]) -> list[System]:
    """Peers first, then ours, each in the order of first appearance by name."""
    return sorted({turn.system for turn in turns}, key=lambda system: (system.is_ours, system.name))


def compare(turns: Sequence[Turn]) -> list[Comparison]:
    """Ours without speculation against the fastest peer without, ours with it against the fastest of all."""
    found = []
    for batch in sorted({turn.batch for turn in turns}):
        for workload in WORKLOADS:
            for ours in (s for s in systems_of(turns) if s.is_ours):
                rivals = [s for s in systems_of(turns) if not s.is_ours and (ours.speculates or not s.speculates)]
                speeds = {s: _median_speed(select(turns, batch, workload, s)) for s in rivals}
                best = max(speeds, key=lambda s: speeds[s], default=None)
                mine = select(turns, batch, workload, ours)
                if best is not None and speeds[best] > 0 and mine:
                    found.append(_compared(mine, select(turns, batch, workload, best)))
    return found


def comparison_table(comparisons: Sequence[Comparison]) -> str:
    header = ["batch, workload", "system", "best peer", "speed ×", "first token ×", "verdict"]
    rows = [
        [f"{c.batch} {c.workload}", c.ours.name, c.best.name, spread(c.speed), spread(c.first_token), verdict_of(c)]
        for c in comparisons
    ]
    return table(header, rows)


def verdict_of(comparison: Comparison) -> str:
    """Of ours with speculation, as users have it; without it there is only the limit to be near."""
    if not comparison.ours.speculates:
        return ""
    speed = statistics.median(comparison.speed)
    if speed <= _AHEAD:
        return "BEHIND"
    said = f"ahead, {_GOAL:g} {'met' if speed >= _GOAL else 'not met'}"
    if comparison.batch > 1 and statistics.median(comparison.first_token) < _AHEAD:
        return f"{said}, first token LATER"
    return said


def limit_shares(turns: Sequence[Turn]) -> dict[str, dict[str, float]]:
    """By system without speculation, by workload: decoding speed of one sequence over the limit, the turns' median."""
    shares: dict[str, dict[str, float]] = {}
    for system in (s for s in systems_of(turns) if not s.speculates):
        for workload in WORKLOADS:
            if found := [turn.of_limit for turn in select(turns, 1, workload, system)]:
                shares.setdefault(system.name, {})[workload] = statistics.median(found)
    return shares


def verdicts(turns: Sequence[Turn]) -> str:
    """A line for each promise; it is kept only where every kind of text was compared."""
    comparisons = [c for c in compare(turns) if c.ours.speculates]
    ours = next((s.name for s in systems_of(turns) if s.is_ours and not s.speculates), "")
    shares = limit_shares(turns).get(ours, {})
    lines = [
        _line(
            f"one sequence without speculation reaches {_OF_LIMIT:g} of the limit",
            {name: _Fact(f"{share:.2f}", share >= _OF_LIMIT) for name, share in shares.items()},
        ),
        _line(
            "one sequence with speculation is ahead of every peer", _speeds([c for c in comparisons if c.batch == 1])
        ),
    ]
    for batch in sorted({turn.batch for turn in turns if turn.batch > 1}):
        together = [c for c in comparisons if c.batch == batch]
        lines.append(_line(f"{batch} at once are ahead of the best peer", _speeds(together)))
        first = {c.workload: statistics.median(c.first_token) for c in together}
        lines.append(
            _line(
                f"{batch} at once: first token no later than the best peer's",
                {name: _Fact(f"{ratio:.2f} ×", ratio >= _AHEAD) for name, ratio in first.items()},
            )
        )
    return "\n".join(lines)


class _Fact(NamedTuple):
    figure: str
    is_kept: bool
    meets_goal: bool = True


def _speeds(comparisons: Sequence[Comparison]) -> dict[str, _Fact]:
    medians = {c.workload: (statistics.median(c.speed), c.best.name) for c in comparisons}
    return {
        name: _Fact(f"{ratio:.2f} × {best}", ratio > _AHEAD, ratio >= _GOAL) for name, (ratio, best) in medians.items()
    }


def _line(promise: str, facts: dict[str, _Fact]) -> str:
    missing = [workload for workload in WORKLOADS if workload not in facts]
    if not all(fact.is_kept for fact in facts.values()):
        said = "NO"
    elif missing:
        said = "not measured" if len(missing) == len(WORKLOADS) else f"not shown: {', '.join(missing)} not measured"
    else:
        said = "yes" if all(fact.meets_goal for fact in facts.values()) else f"yes, goal {_GOAL:g} not met"
    figures = "; ".join(f"{name} {fact.figure}" for name, fact in facts.items())
    return f"- {promise}: **{said}**{f' ({figures})' if figures else ''}"


def _median_speed(turns: Sequence[Turn]) -> float:
    return statistics.median(turn.tokens_per_s for turn in turns) if turns else 0.0


def _compared(ours: Sequence[Turn], theirs: Sequence[Turn]) -> Comparison:
    by_place = {turn.place: turn for turn in theirs}
    pairs = [(turn, by_place[turn.place]) for turn in ours if turn.place in by_place]
    return Comparison(
        ours[0].system,
        theirs[0].system,
        ours[0].batch,
        ours[0].workload,
        tuple(mine.tokens_per_s / other.tokens_per_s for mine, other in pairs),
        tuple(_first_token_s(other) / _first_token_s(mine) for mine, other in pairs),
    )


def _first_token_s(turn: Turn) -> float:
    return statistics.median(sample.time_to_first_token_s for sample in turn.samples)
