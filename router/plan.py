"""What the scheduler hands over for one step, and what comes back. Pure data.

What each sequence of a step has one of is a NamedTuple, which is made in half the time of a frozen dataclass.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from router.proposal import Proposal
from router.sequence import SamplingParams


class Phase(Enum):
    PREFILL = "prefill"
    DECODE = "decode"
    VERIFY = "verify"


@dataclass(frozen=True, slots=True)
class NewSequence:
    slot: int
    token_ids: list[int]
    sampling: SamplingParams
    max_num_tokens: int
    stop_token_ids: frozenset[int]
    logprobs: bool


class SequenceStep(NamedTuple):
    """A sequence's part of a step: a prompt chunk if `chunk_length`, else a decode that checks `verify` drafts. For the
    next step at most `propose` drafts are wanted, as a tree of at most `propose_depth`."""

    slot: int
    new_block_ids: list[int]
    chunk_start: int = 0
    chunk_length: int = 0
    verify: int = 0
    propose: int = 0
    propose_depth: int = 0

    @property
    def num_rows(self) -> int:
        return self.chunk_length or 1 + self.verify


@dataclass(frozen=True, slots=True)
class DraftPrice:
    """What each of a step's drafts costs from number `first` (0, 1, …) on, in accepted drafts: as likely right as that
    it brings what it costs."""

    first: int
    probability: float


@dataclass(frozen=True, slots=True)
class StepPlan:
    step_id: int
    released_slots: list[int]
    new_sequences: list[NewSequence]
    sequences: list[SequenceStep]
    proposal: Proposal = Proposal.NONE
    draft_prices: tuple[DraftPrice, ...] = ()

    @property
    def phase(self) -> Phase:
        if any(step.chunk_length for step in self.sequences):
            return Phase.PREFILL
        return Phase.VERIFY if any(step.verify for step in self.sequences) else Phase.DECODE

    @property
    def num_rows(self) -> int:
        return sum(step.num_rows for step in self.sequences)


class SequenceResult(NamedTuple):
    """Tokens that a step brought for the sequence in `slot`, and how many of `drafted` guesses were among them;
    `draft_counts` as in router/draft_counts.py. `logprobs` mean nothing if the sequence did not ask for them."""

    slot: int
    token_ids: list[int]
    logprobs: list[float]
    drafted: int
    accepted: int
    draft_counts: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class StepResult:
    step_id: int
    sequences: list[SequenceResult]
    duration_s: float
    # Of that, what it took to make drafts for the next step.
    proposing_s: float = 0.0
