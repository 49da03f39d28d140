"""What a step is to do and what it brought, as the shard sees it. Pure data, one class per message of the wire."""

from dataclasses import dataclass

from shard.speculation import DraftPrice, Method, Proposal


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


@dataclass(frozen=True, slots=True)
class SequenceStep:
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


@dataclass(frozen=True, slots=True)
class DraftCounts:
    """Drafts of one method that were checked, and that were accepted, by depth from 1."""

    method: Method
    drafted: list[int]
    accepted: list[int]


@dataclass(frozen=True, slots=True)
class SequenceResult:
    slot: int
    token_ids: list[int]
    logprobs: list[float]
    drafted: int
    accepted: int
    draft_counts: list[DraftCounts]


@dataclass(frozen=True, slots=True)
class StepResult:
    """`sequences` is empty on every rank but 0; `digest` (64 bits) covers all that was committed so far."""

    step_id: int
    sequences: list[SequenceResult]
    digest: int
    duration_ns: int
    # Of that, what it took to make drafts for the next step.
    proposing_ns: int = 0
