"""Decides what each step does: who prefills which chunk, who decodes, who verifies how many drafts.

Pure and synchronous: no clock, no I/O, no protobuf. Slots and blocks are the affair of router/placement.py. The engine
calls `schedule` to get a plan, sends it, and calls `update` with the reply; a second plan may be made before the first
reply, and the rules that make this safe are here:

- Blocks are planned for the longest outcome of every outstanding step and of the step being planned.
- Blocks freed now may be given away in the very next plan: shards run plans in order, so nothing outstanding can
  touch them after that plan begins.
- A block is offered to the prefix table only when the reply of the step that wrote it is in.
- A preempted sequence is admitted again only after its outstanding replies, whose tokens it keeps.

A request that the shards die of would be replayed for ever, and all others with it. So one with which two groups were
lost is alone in its steps until it has brought some tokens, and `restart` names it if a group is lost with it then.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from router.block_manager import BlockManager
from router.budget import BudgetController, StepBudget
from router.outstanding import OutstandingSequence, OutstandingStep
from router.placement import Placement
from router.plan import NewSequence, SequenceResult, SequenceStep, StepPlan, StepResult
from router.proposal import Proposal
from router.sequence import FinishReason, Sequence, SequenceStatus

# Looked up once: to Python 3.11 a member of an enumeration takes ten times as long as a module's name.
_NOBODY = Proposal.NONE
# A sequence that got a slot, and its blocks.
_Admitted = tuple[Sequence, list[int]]
# A sequence's part of a step, and what is remembered of it until the reply.
_Planned = tuple[SequenceStep, OutstandingSequence]


@dataclass(frozen=True, slots=True)
class SchedulerConfig:
    """`max_batch_size` bounds the sequences that hold a slot, `max_batch_tokens`, which is more, the rows of a step
    without its drafts, `max_draft_tokens` those, which sequences share evenly."""

    num_blocks: int
    block_size: int
    max_batch_size: int
    max_batch_tokens: int
    max_draft_tokens: int = 0
    enable_prefix_caching: bool = True


class Progress(NamedTuple):
    """Tokens that a reply brought for a sequence that still wants them, and why they are its last, if they are."""

    sequence: Sequence
    result: SequenceResult
    finish_reason: FinishReason | None


class Scheduler:
    def __init__(self, config: SchedulerConfig, budget: BudgetController) -> None:
        self.config = config
        self.budget = budget
        self._placement = _placement(config)
        self._step_id = 0
        self._outstanding: dict[int, OutstandingStep] = {}
        self._num_earlier_preemptions = 0

    # --- what the engine asks

    @property
    def blocks(self) -> BlockManager:
        return self._placement.blocks

    @property
    def num_waiting(self) -> int:
        return len(self._placement.waiting)

    @property
    def num_running(self) -> int:
        return len(self._placement.running)

    @property
    def num_preemptions(self) -> int:
        return self._num_earlier_preemptions + self._placement.num_preemptions

    @property
    def num_outstanding_steps(self) -> int:
        return len(self._outstanding)

    def fits(self, max_num_tokens: int) -> bool:
        """Whether a sequence of that many tokens could run alone."""
        return self.blocks.blocks_for(max_num_tokens) <= self.config.num_blocks

    # --- what happens to sequences

    def add(self, sequence: Sequence) -> None:
        assert self.fits(sequence.max_num_tokens), "a sequence that can never run was admitted to the queue"
        self._placement.add(sequence)

    def finish(self, sequence: Sequence, *, num_tokens: int | None = None) -> None:
        """Ends a sequence, keeping its first `num_tokens`, or all."""
        if num_tokens is not None:
            del sequence.token_ids[num_tokens:]
            sequence.num_computed_tokens = min(sequence.num_computed_tokens, num_tokens)
        self._placement.remove(sequence)
        sequence.status = SequenceStatus.FINISHED
        self.budget.forget(sequence)

    def restart(self, config: SchedulerConfig, budget: BudgetController) -> list[Sequence]:
        """The shards lost everything: outstanding steps are void and every sequence is prefilled again. Returns that of
        which they died, for all one knows, to be ended."""
        lost = self._in_outstanding_steps()
        guilty = [sequence for sequence in lost if sequence.is_suspect and len(lost) == 1]
        for sequence in lost:
            sequence.note_loss()
        self.config = config
        self.budget = budget
        self._num_earlier_preemptions = self.num_preemptions
        sequences, self._placement = self._placement.reset_all(), _placement(config)
        for sequence in sequences:
            sequence.outstanding.clear()
            self._placement.add(sequence)
        self._step_id = 0
        self._outstanding.clear()
        return guilty

    def _in_outstanding_steps(self) -> set[Sequence]:
        entries = (entry.sequence for step in self._outstanding.values() for entry in step.sequences)
        return {sequence for sequence in entries if sequence.status is not SequenceStatus.FINISHED}

    # --- plan

    def schedule(self) -> StepPlan | None:
        """The next plan, or None when no sequence can take a step now."""
        suspect = self._placement.suspect
        if suspect is not None:
            if not self._in_outstanding_steps() <= {suspect}:
                return None
            plan = self._schedule([suspect], iter(()))
            # Where it had to give its blocks back and no reply is to come, the others go on.
            if plan is not None or self._outstanding:
                return plan
        if self._placement.is_suspect_next:
            if self._outstanding:
                return None
            if admitted := self._placement.admit():
                return self._schedule([], iter([admitted]))
        return self._schedule(self._placement.running, iter(self._admit_beside_others, None))

    def _admit_beside_others(self) -> _Admitted | None:
        return None if self._placement.is_suspect_next else self._placement.admit()

    def _schedule(self, taking_part: list[Sequence], newcomers: Iterator[_Admitted]) -> StepPlan | None:
        """Of sequences that run and are to take part, and of newcomers as far as they are asked for."""
        planned: list[_Planned] = []
        new_sequences: list[NewSequence] = []
        # Drafts come on top: most of those that may be checked are never proposed, and prompts would wait for rows that
        # stay empty.
        budget = self.config.max_batch_tokens
        for sequence in self._placement.running:
            self._placement.register(sequence)
        decoding = [sequence for sequence in taking_part if not sequence.is_prefilling]
        drafting = self._begin_drafting(len(decoding))
        share = self.config.max_draft_tokens // max(1, len(decoding))
        for sequence in decoding:
            # Who was preempted for an older one is gone.
            if sequence.status is SequenceStatus.RUNNING and (decode := self._plan_decode(sequence, share)):
                planned.append(decode)
                budget -= 1
        for sequence in taking_part:
            if sequence.is_prefilling and budget > 0:
                planned.append(chunk := self._plan_chunk(sequence, budget, new_block_ids=[]))
                budget -= chunk[0].chunk_length
        while budget > 0 and (admitted := next(newcomers, None)):
            sequence, block_ids = admitted
            new_sequences.append(self._introduce(sequence))
            planned.append(chunk := self._plan_chunk(sequence, budget, new_block_ids=block_ids))
            budget -= chunk[0].chunk_length
        if not planned:
            return None
        self._step_id += 1
        steps, in_step = [step for step, _ in planned], [entry for _, entry in planned]
        num_asked = sum(step.propose > 0 for step in steps)
        self._outstanding[self._step_id] = OutstandingStep(
            in_step,
            context=sum(len(entry.sequence.token_ids) for entry in in_step),
            asked=drafting.proposal,
            num_asked=num_asked,
        )
        return StepPlan(
            self._step_id,
            self._placement.take_released_slots(),
            new_sequences,
            steps,
            proposal=drafting.proposal,
            draft_prices=drafting.prices if num_asked else (),
        )

    def _begin_drafting(self, num_decoding: int) -> StepBudget:
        """What this step asks for is checked by the next one: do prompts fill that, too?"""
        running, next_to_admit = self._placement.running, self._placement.next_to_admit
        num_prompt_rows = sum(sequence.num_tokens_to_prefill - sequence.num_prefilled_tokens for sequence in running)
        num_prompt_rows += sum(sequence.num_tokens for sequence in next_to_admit)
        most = self.config.max_batch_tokens
        is_full = num_prompt_rows >= 2 * (most - num_decoding)
        return self.budget.begin_step([*running, *next_to_admit], full_rows=most if is_full else 0)

    def _plan_decode(self, sequence: Sequence, share: int) -> _Planned | None:
        """A decode, or a verification of at most `share` drafts; None if the sequence sits this step out."""
        # Tokens that may still come after the least that outstanding steps bring; none means it surely ends there.
        room = sequence.max_num_tokens - sequence.min_tokens_after_outstanding
        if room <= 0:
            return None
        verify = min(sequence.num_proposed_drafts, share) if room > 1 else 0
        depth = min(sequence.proposed_depth, verify)
        # The keys and values of the input token and of every accepted draft, after the longest outcome before.
        bound = min(sequence.max_tokens_after_outstanding + depth, sequence.max_num_tokens)
        new_block_ids = self._placement.grow(sequence, bound)
        if new_block_ids is None:
            return None
        checked = sequence.proposal if verify else _NOBODY
        sequence.outstanding.append(1 + depth)
        self._propose(sequence, share)
        assert sequence.slot is not None
        step = SequenceStep(
            sequence.slot,
            new_block_ids,
            verify=verify,
            propose=sequence.num_proposed_drafts,
            propose_depth=sequence.proposed_depth,
        )
        return step, OutstandingSequence(sequence, sequence.slot, 0, checked)

    def _propose(self, sequence: Sequence, share: int) -> None:
        """Settles what the shards may draft after the step that has just become outstanding."""
        # The step that checks the drafts brings one token by itself.
        room = sequence.max_num_tokens - sequence.min_tokens_after_outstanding - 1
        sequence.num_proposed_drafts, sequence.proposed_depth = self.budget.allow(sequence, room, share)
        sequence.proposal = self.budget.budget.proposal if sequence.num_proposed_drafts else _NOBODY

    def _plan_chunk(self, sequence: Sequence, budget: int, *, new_block_ids: list[int]) -> _Planned:
        start = sequence.num_prefilled_tokens
        length = min(sequence.num_tokens_to_prefill - start, budget)
        sequence.num_prefilled_tokens = start + length
        sequence.outstanding.append(0 if sequence.is_prefilling else 1)
        # Until the last chunk nothing is drafted.
        if not sequence.is_prefilling:
            self._propose(sequence, self.config.max_draft_tokens)
        assert sequence.slot is not None
        step = SequenceStep(
            sequence.slot,
            new_block_ids,
            chunk_start=start,
            chunk_length=length,
            propose=sequence.num_proposed_drafts,
            propose_depth=sequence.proposed_depth,
        )
        return step, OutstandingSequence(sequence, sequence.slot, start + length, _NOBODY)

    @staticmethod
    def _introduce(sequence: Sequence) -> NewSequence:
        assert sequence.slot is not None
        return NewSequence(
            slot=sequence.slot,
            token_ids=list(sequence.token_ids),
            sampling=sequence.sampling,
            max_num_tokens=sequence.max_num_tokens,
            stop_token_ids=sequence.stop_token_ids,
            logprobs=sequence.logprobs,
        )

    # --- reply

    def update(self, result: StepResult) -> list[Progress]:
        """Takes the reply to the oldest outstanding step. Who has a finish reason is to be finished by the caller,
        before the next plan: it knows how many of the tokens are kept."""
        by_slot = {one.slot: one for one in result.sequences}
        progress: list[Progress] = []
        step = self._outstanding.pop(result.step_id)
        self.budget.observe_step(step.taken(result))
        for entry in step.sequences:
            sequence = entry.sequence
            if sequence.status is SequenceStatus.FINISHED:
                continue
            sequence.outstanding.pop(0)
            one = by_slot.get(entry.slot)
            if one is not None:
                sequence.token_ids += one.token_ids
                progress.append(Progress(sequence, one, _finish_reason(sequence)))
                if entry.proposal is not _NOBODY:
                    self.budget.observe(sequence, entry.proposal, one)
            # Blocks of a preempted sequence are gone, whatever the step wrote to them.
            if sequence.slot == entry.slot:
                sequence.num_computed_tokens = entry.chunk_end or sequence.num_tokens - 1
        return progress


def _finish_reason(sequence: Sequence) -> FinishReason | None:
    """Of one that has just got a token."""
    if sequence.token_ids[-1] in sequence.stop_token_ids:
        return FinishReason.STOP
    return FinishReason.LENGTH if sequence.num_tokens >= sequence.max_num_tokens else None


def _placement(config: SchedulerConfig) -> Placement:
    return Placement(
        config.num_blocks,
        config.block_size,
        num_slots=config.max_batch_size,
        enable_prefix_caching=config.enable_prefix_caching,
    )
