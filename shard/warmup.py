"""Steps of each kind before the first request, at the greatest sizes: pages in the weights, fails early, and measures
what steps cost, which is what the router's budget is made of.

Leaves nothing behind: the runner is reset before and after.
"""

import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from statistics import median

from shard.captured_steps import CAPTURED_AT, PROMPTS_CAPTURED_AT
from shard.config import ShardConfig
from shard.made_up import MadeUpSteps
from shard.model_runner import ModelRunner
from shard.plan import StepCost
from shard.speculation import Proposal
from shard.speculation.drafter import SpeculationSizes

log = logging.getLogger(__name__)

# Kinds of steps are measured in sweeps over all of them, fewer of those that take long: what else runs on the machine
# then slows a sweep down, and not one kind beside the others. How many follows from the kind, never from a clock: all
# ranks must take the same steps.
_MOST_SWEEPS, _FEWER_SWEEPS, _LEAST_SWEEPS = 7, 5, 3
# Committed tokens of each sequence, where the model allows so many.
_SHORT, _LONG = 64, 1024
# Sequences.
_FEW = 16


@dataclass(frozen=True, slots=True)
class _Kind:
    """Steps of `sequences` with `drafts` each, at `context` tokens each."""

    sequences: int
    drafts: int = 0
    context: int = _SHORT
    proposal: Proposal = Proposal.NONE

    @property
    def rows(self) -> int:
        return self.sequences * (1 + self.drafts)

    @property
    def num_sweeps(self) -> int:
        return _MOST_SWEEPS if self.rows <= 4 else _FEWER_SWEEPS if self.rows <= 16 else _LEAST_SWEEPS


def warm_up(
    runner: ModelRunner,
    config: ShardConfig,
    *,
    sizes: SpeculationSizes,
    proposals: list[Proposal],
    on_step: Callable[[], None] = lambda: None,
) -> list[StepCost]:
    """What steps cost, on every rank; empty if nothing is ever drafted. `proposals`: who can be asked for drafts.
    `on_step` is called where each step begins."""
    steps = MadeUpSteps(runner, config, sizes=sizes, on_step=on_step)
    # Single prompts as they are captured, and the longest chunk there can be.
    longest = min(config.max_batch_prefill_tokens, config.max_total_tokens - 1)
    _look_at_logits(steps, min(_SHORT, longest), config)
    # The largest first, here and below: the memory that graphs share then serves the smaller ones.
    captured = [min(length, longest) for length in reversed(runner.captured_chunk_rows)] * PROMPTS_CAPTURED_AT
    for length in (*captured, longest):
        steps.prefill(context=0, length=length)
        steps.forget()
    sweeper = _Sweeps(steps, config, sizes)
    kinds = list(_kinds(config, sizes, proposals)) if sizes.num_speculative_tokens else [_Kind(1)]
    # Before anything is measured, and so that few shapes are captured while requests wait, and no kernel compiled.
    frequent = list(_captured_kinds(runner.captured_batches, config, sizes, proposals))
    for number in range(CAPTURED_AT if frequent else 0):
        log.info("capturing steps, %d of %d", number + 1, CAPTURED_AT)
        list(sweeper.sweep(sorted([*kinds, *frequent], key=lambda kind: kind.rows, reverse=True)))
    if not sizes.num_speculative_tokens:
        list(sweeper.sweep(kinds))
        return []
    sweeps = [
        dict(sweeper.sweep([kind for kind in kinds if kind.num_sweeps > number])) for number in range(_MOST_SWEEPS)
    ]
    costs = typical_costs(sweeps)
    log.info("steps: %s", ", ".join(_words(cost) for cost in costs))
    return costs


def _look_at_logits(steps: MadeUpSteps, length: int, config: ShardConfig) -> None:
    """Of a model that overflows every token means nothing, and nothing else would say so."""
    result = steps.prefill(context=0, length=length, logprobs=True)
    steps.forget()
    if not all(math.isfinite(logprob) for sequence in result.sequences for logprob in sequence.logprobs):
        log.warning(
            "the model's logits are not all finite: its tokens mean nothing. Its weights are damaged, or it overflows "
            "in --dtype %s",
            config.dtype,
        )


def typical_costs(sweeps: list[dict[_Kind, StepCost]]) -> list[StepCost]:
    """Of each kind of step what it typically takes beside the others, at the typical speed of a sweep.

    The price of a draft is a small difference of two of these, and a machine that others use is fast in one second and
    slow in the next. So each time counts relative to those kinds of its sweep that all sweeps have. What making
    drafts takes is measured by itself, and does not wait for memory.
    """
    common = set(sweeps[0]).intersection(*sweeps[1:])
    paces = [sum(_without_proposing_ns(sweep[key]) for key in common) for sweep in sweeps]
    pace = median(paces)

    def typical(key: _Kind, cost: StepCost) -> StepCost:
        relative = median(_without_proposing_ns(s[key]) / p for s, p in zip(sweeps, paces, strict=True) if key in s)
        proposing_ns = int(median(sweep[key].proposing_ns for sweep in sweeps if key in sweep))
        return replace(cost, duration_ns=int(pace * relative) + proposing_ns, proposing_ns=proposing_ns)

    return [typical(key, cost) for key, cost in sweeps[0].items()]


def _without_proposing_ns(cost: StepCost) -> int:
    return cost.duration_ns - cost.proposing_ns


def _words(cost: StepCost) -> str:
    asked = f" {cost.proposal.name.lower()} {cost.proposing_ns * 1e-6:.1f} of" if cost.proposal else ""
    return f"{cost.sequences}/{cost.rows}/{cost.context}{asked} {cost.duration_ns * 1e-6:.1f} ms"


def _kinds(config: ShardConfig, sizes: SpeculationSizes, proposals: list[Proposal]) -> Iterator[_Kind]:
    most = config.max_batch_size
    batches = sorted({*(2**i for i in range(most.bit_length()) if 2**i < most), most})
    yield from (_Kind(batch) for batch in batches)
    # As many rows as of sequences, but drafts among them; and more.
    yield from (_Kind(batch, 1) for batch in (2, 4) if 2 * batch <= most)
    yield _Kind(1, sizes.tree_size)
    if config.max_batch_draft_tokens >= most:
        yield _Kind(most, 1)
    yield from (_Kind(batch, context=_LONG) for batch in sorted({1, min(8, most)}))
    for proposal in proposals:
        # A single sequence with the checking of a chain; of more the rows would say nothing new.
        yield _Kind(1, sizes.num_speculative_tokens, proposal=proposal)
        if most > 1:
            yield _Kind(min(8, most), proposal=proposal)


def _captured_kinds(
    batches: list[int], config: ShardConfig, sizes: SpeculationSizes, proposals: list[Proposal]
) -> Iterator[_Kind]:
    """Of every number of rows; with asking those of few sequences, for which drafts pay most."""
    for batch in batches:
        yield from (_Kind(batch, proposal=proposal) for proposal in (Proposal.NONE, *proposals))
        asked = proposals if batch <= _FEW else []
        most = min(sizes.tree_size, config.max_batch_draft_tokens // batch)
        for drafts in sorted({min(2**i - 1, most) for i in range(1, most.bit_length() + 1)}):
            yield from (_Kind(batch, drafts, proposal=proposal) for proposal in (Proposal.NONE, *asked))


class _Sweeps:
    """Times steps of kinds. `steps` begins empty and is left so."""

    def __init__(self, steps: MadeUpSteps, config: ShardConfig, sizes: SpeculationSizes) -> None:
        self._steps = steps
        self._config = config
        self._sizes = sizes

    def sweep(self, kinds: list[_Kind]) -> Iterator[tuple[_Kind, StepCost]]:
        """A step of each kind; of none where sequences cannot be so long."""
        for wanted in sorted({kind.context for kind in kinds}):
            alike = [kind for kind in kinds if kind.context == wanted]
            # After one prompt if sequences can be so long, else each kind after a prompt of its own.
            fits = self._room(alike) < self._config.max_total_tokens
            for group in [alike] if fits else [[kind] for kind in alike]:
                yield from self._after_a_prompt(group, wanted)

    def _room(self, kinds: list[_Kind]) -> int:
        """Tokens that the steps of these kinds may bring, all drafts accepted, and one more."""
        deepest = self._sizes.num_speculative_tokens
        return 1 + sum(1 + min(kind.drafts, deepest) for kind in kinds)

    def _after_a_prompt(self, kinds: list[_Kind], wanted: int) -> Iterator[tuple[_Kind, StepCost]]:
        room = self._room(kinds)
        context = min(wanted, self._config.max_total_tokens - room)
        if context < 1 or context < wanted == _LONG:
            return
        self._steps.enter(max(kind.sequences for kind in kinds), context=context, room=room)
        for kind in kinds:
            taken = self._steps.decode([kind.drafts] * kind.sequences, kind.proposal)
            yield (
                kind,
                StepCost(
                    sequences=kind.sequences,
                    rows=kind.rows,
                    context=kind.sequences * (context + 1),
                    proposal=kind.proposal,
                    duration_ns=taken.duration_ns,
                    proposing_ns=taken.proposing_ns,
                ),
            )
        self._steps.forget()
