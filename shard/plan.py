"""What a step is to do and what it brought, as the shard sees it. Pure data.

What each sequence of a step has one of is a NamedTuple, which is made in half the time of a frozen dataclass.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from shard.speculation import DraftPrice, Proposal


@dataclass(frozen=True, slots=True)
class Sampling:
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    seed: int

    @property
    def is_sampled(self) -> bool:
        return self.temperature > 0

    @property
    def is_filtered(self) -> bool:
        return self.is_sampled and (self.top_k > 0 or self.top_p < 1 or self.min_p > 0)


@dataclass(frozen=True, slots=True)
class NewSequence:
    """`token_ids` is all that is known: the prompt and, on a replay, what was generated before."""

    slot: int
    token_ids: list[int]
    sampling: Sampling
    max_num_tokens: int
    stop_token_ids: list[int]
    logprobs: bool


class SequenceStep(NamedTuple):
    """A prompt chunk if `chunk_length`, else a decode that checks up to `verify` drafts. For the next step at most
    `propose` drafts are wanted, as a tree of at most `propose_depth`."""

    slot: int
    new_block_ids: list[int]
    chunk_start: int
    chunk_length: int
    verify: int
    propose: int
    propose_depth: int


@dataclass(frozen=True, slots=True)
class StepPlan:
    step_id: int
    released_slots: list[int]
    new_sequences: list[NewSequence]
    sequences: list[SequenceStep]
    # Of the sequences that want drafts.
    proposal: Proposal = Proposal.NONE
    draft_prices: tuple[DraftPrice, ...] = ()


@dataclass(frozen=True, slots=True)
class StepCost:
    """The measured time of a decode of `sequences` in `rows` rows, drafts included, over `context` tokens in all."""

    sequences: int
    rows: int
    context: int
    proposal: Proposal
    duration_ns: int
    # Of that, what it took to make drafts for the next step.
    proposing_ns: int = 0


class SequenceResult(NamedTuple):
    """`logprobs` and `draft_counts` are empty where nobody asked and nothing was checked; the counts are those of the
    wire, [checked, accepted][Method][depth from 1] as one list."""

    slot: int
    token_ids: list[int]
    logprobs: list[float]
    drafted: int
    accepted: int
    draft_counts: Sequence[int]


@dataclass(frozen=True, slots=True)
class StepResult:
    """`sequences` is empty on every rank but 0; `digest` (64 bits) covers all that was committed so far."""

    step_id: int
    sequences: list[SequenceResult]
    digest: int
    duration_ns: int
    # Of that, what it took to make drafts for the next step.
    proposing_ns: int = 0
