"""A sequence: the tokens of one choice of one request, and what the scheduler knows of it.

Pure data. Knows nothing of text, streams, clocks or protobuf.
"""

from dataclasses import dataclass, field
from enum import Enum, auto


class FinishReason(Enum):
    STOP = auto()
    LENGTH = auto()


class SequenceStatus(Enum):
    WAITING = auto()
    RUNNING = auto()
    FINISHED = auto()


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """Temperature 0 is greedy; top_k 0, top_p 1 and min_p 0 filter nothing. The seed has 64 bits."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0


@dataclass(slots=True, eq=False)
class Sequence:
    """`token_ids` holds the prompt and every token that a reply brought and the router kept."""

    seq_id: int
    token_ids: list[int]
    num_prompt_tokens: int
    max_num_tokens: int
    sampling: SamplingParams = SamplingParams()
    stop_token_ids: frozenset[int] = frozenset()
    num_speculative_tokens: int = 0
    logprobs: bool = False

    status: SequenceStatus = SequenceStatus.WAITING
    finish_reason: FinishReason | None = None
    slot: int | None = None
    block_table: list[int] = field(default_factory=list)
    # Tokens whose keys and values are in blocks according to replies; outstanding steps may have written more.
    num_computed_tokens: int = 0
    # Tokens of a prefill that plans have covered, replied or not; None once the sequence decodes.
    num_prefilled_tokens: int | None = 0
    # Upper bound of the tokens it has once every outstanding step is replied.
    num_tokens_bound: int = 0
    # Drafts that the last plan let the shards propose: the next plan may check at most so many.
    num_proposed_tokens: int = 0
    num_outstanding_steps: int = 0
    # Prompt tokens found in the prefix cache at the first admission; None before it.
    num_cached_prompt_tokens: int | None = None

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def num_generated_tokens(self) -> int:
        return len(self.token_ids) - self.num_prompt_tokens
