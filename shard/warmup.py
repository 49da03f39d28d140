"""Steps of each kind before the first request, at the greatest sizes: pages in the weights, fails early, and measures
what steps cost, which is what the router's budget is made of.

Leaves nothing behind: the runner is reset before and after.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from statistics import median

import torch

from shard.config import ShardConfig
from shard.model_runner import ModelRunner
from shard.plan import NewSequence, Sampling, SequenceStep, StepCost, StepPlan
from shard.speculation import DraftTree, Proposal
from shard.speculation.drafter import SpeculationSizes

log = logging.getLogger(__name__)

# Kinds of steps are measured in sweeps over all of them, fewer of those that take long: what else runs on the machine
# then slows a sweep down, and not one kind beside the others. How many follows from the kind, never from a clock: all
# ranks must take the same steps.
_MOST_SWEEPS, _FEWER_SWEEPS, _LEAST_SWEEPS = 7, 5, 3
# Committed tokens of each sequence, where the model allows so many.
_SHORT, _LONG = 64, 1024


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
    def proposals(self) -> list[Proposal]:
        """What asking costs is a small difference: both kinds of step are taken, one right after the other."""
        return list(dict.fromkeys((Proposal.NONE, self.proposal)))

    @property
    def num_sweeps(self) -> int:
        return _MOST_SWEEPS if self.rows <= 4 else _FEWER_SWEEPS if self.rows <= 16 else _LEAST_SWEEPS


# With who was asked for drafts.
_Asked = tuple[_Kind, Proposal]


def warm_up(
    runner: ModelRunner,
    config: ShardConfig,
    *,
    num_blocks: int,
    vocab_size: int,
    sizes: SpeculationSizes,
    proposals: list[Proposal],
) -> list[StepCost]:
    """What steps cost, on every rank; empty if nothing is ever drafted. `proposals`: who can be asked for drafts."""
    steps = _Steps(runner, config, num_blocks, vocab_size, sizes)
    steps.prefill()
    if not sizes.num_speculative_tokens:
        list(steps.sweep([_Kind(1)]))
        return []
    kinds = list(_kinds(config, sizes, proposals))
    sweeps = [dict(steps.sweep([kind for kind in kinds if kind.num_sweeps > number])) for number in range(_MOST_SWEEPS)]
    costs = typical_costs(sweeps)
    log.info("steps: %s", ", ".join(_words(cost) for cost in costs))
    return costs


def typical_costs(sweeps: list[dict[_Asked, StepCost]]) -> list[StepCost]:
    """Of each kind of step what it typically takes beside the others, at the typical speed of a sweep.

    The price of a draft is a small difference of two of these, and a machine that others use is fast in one second and
    slow in the next. So each time counts relative to those kinds of its sweep that all sweeps have.
    """
    common = set(sweeps[0]).intersection(*sweeps[1:])
    paces = [sum(sweep[key].duration_ns for key in common) for sweep in sweeps]
    pace = median(paces)
    return [
        replace(
            cost,
            duration_ns=int(
                pace * median(s[key].duration_ns / p for s, p in zip(sweeps, paces, strict=True) if key in s)
            ),
        )
        for key, cost in sweeps[0].items()
    ]


def _words(cost: StepCost) -> str:
    asked = f" {cost.proposal.name.lower()}" if cost.proposal else ""
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


class _Steps:
    """Steps of made-up sequences. Contexts are not computed: what their blocks hold is of no meaning."""

    def __init__(
        self, runner: ModelRunner, config: ShardConfig, num_blocks: int, vocab_size: int, sizes: SpeculationSizes
    ) -> None:
        self._runner = runner
        self._config = config
        self._num_blocks = num_blocks
        self._vocab_size = vocab_size
        self._sizes = sizes
        self._step_id = 0
        runner.reset()

    def prefill(self) -> None:
        """The longest chunk there can be."""
        length = min(self._config.max_batch_prefill_tokens, self._config.max_total_tokens - 1)
        self._run([self._new(0, length)], [self._chunk(0, 0, length, length)])
        self._runner.reset()

    def sweep(self, kinds: list[_Kind]) -> Iterator[tuple[_Asked, StepCost]]:
        """A step of each kind for each proposal; of none where sequences cannot be so long."""
        for wanted in sorted({kind.context for kind in kinds}):
            alike = [kind for kind in kinds if kind.context == wanted]
            # After one prompt if sequences can be so long, else each kind after a prompt of its own.
            fits = self._room(alike) < self._config.max_total_tokens
            for group in [alike] if fits else [[kind] for kind in alike]:
                yield from self._after_a_prompt(group, wanted)

    def _room(self, kinds: list[_Kind]) -> int:
        """Tokens that the steps of these kinds may bring, all drafts accepted, and one more."""
        deepest = self._sizes.num_speculative_tokens
        return 1 + sum(len(kind.proposals) * (1 + min(kind.drafts, deepest)) for kind in kinds)

    def _after_a_prompt(self, kinds: list[_Kind], wanted: int) -> Iterator[tuple[_Asked, StepCost]]:
        room = self._room(kinds)
        context = min(wanted, self._config.max_total_tokens - room)
        if context < 1 or context < wanted == _LONG:
            return
        slots = range(max(kind.sequences for kind in kinds))
        self._run(
            [self._new(slot, context) for slot in slots],
            [self._chunk(slot, context - 1, 1, context + room) for slot in slots],
        )
        for kind in kinds:
            for proposal in kind.proposals:
                taken = self._measured(kind, proposal)
                cost = StepCost(kind.sequences, kind.rows, kind.sequences * (context + 1), proposal, taken)
                yield (kind, proposal), cost
        self._runner.reset()

    def _measured(self, kind: _Kind, proposal: Proposal) -> int:
        slots = range(kind.sequences)
        proposes = proposal is not Proposal.NONE
        if kind.drafts:
            states = self._runner.states
            states.set_drafts(torch.tensor(slots, device=states.device), self._wrong(kind))
        steps = [
            SequenceStep(
                slot,
                [],
                chunk_start=0,
                chunk_length=0,
                verify=kind.drafts,
                propose=self._sizes.tree_size if proposes else 0,
                propose_depth=self._sizes.num_speculative_tokens if proposes else 0,
            )
            for slot in slots
        ]
        return self._run([], steps, proposal)

    def _run(self, new: list[NewSequence], steps: list[SequenceStep], proposal: Proposal = Proposal.NONE) -> int:
        self._step_id += 1
        return self._runner.execute(StepPlan(self._step_id, [], new, steps, proposal)).duration_ns

    def _new(self, slot: int, num_tokens: int) -> NewSequence:
        return NewSequence(
            slot=slot,
            token_ids=[(7 * slot + position) % self._vocab_size for position in range(num_tokens)],
            sampling=Sampling(temperature=0.0, top_k=0, top_p=1.0, min_p=0.0, seed=0),
            max_num_tokens=self._config.max_total_tokens,
            stop_token_ids=[],
            logprobs=False,
        )

    def _chunk(self, slot: int, start: int, length: int, most_tokens: int) -> SequenceStep:
        """With blocks for `most_tokens`; sequences share them only where there are too few."""
        count = most_tokens // self._config.block_size + 1
        blocks = [1 + (slot * count + i) % self._num_blocks for i in range(count)]
        return SequenceStep(slot, blocks, start, length, verify=0, propose=0, propose_depth=0)

    def _wrong(self, kind: _Kind) -> DraftTree:
        """Drafts that no text asks for, each a child of the last token but the first few, which are a chain."""
        size, deepest = self._sizes.tree_size, self._sizes.num_speculative_tokens
        device = self._runner.states.device
        token_ids = (
            torch.arange(self._vocab_size - 1, self._vocab_size - 1 - size, -1, device=device) % self._vocab_size
        )
        parents = torch.tensor([i if i < deepest else 0 for i in range(size)], device=device)
        shape = (kind.sequences, size)
        num_drafts = torch.full((kind.sequences,), kind.drafts, device=device)
        return DraftTree(token_ids.expand(shape), parents.expand(shape), num_drafts)
