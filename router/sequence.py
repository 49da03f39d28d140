"""A sequence: the tokens of one choice of one request, and what the scheduler knows of it.

Pure data. Knows nothing of text, streams, clocks or protobuf.
"""

from dataclasses import dataclass, field
from enum import Enum, auto

from router.proposal import Proposal

# A sequence with which so many groups of shards were lost, one soon after the other, may be why; not one that brought
# so many tokens since.
SUSPECTED_AFTER, CLEARED_AFTER = 2, 16


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
    slot: int | None = None
    block_table: list[int] = field(default_factory=list)
    # Keys of its full blocks, as far as anybody asked (see block_manager).
    prefix_keys: list[bytes] = field(default_factory=list)
    # Blocks of its table that the prefix table has been offered.
    num_registered_blocks: int = 0
    # Tokens whose keys and values are in blocks according to replies; outstanding steps may have written more.
    num_computed_tokens: int = 0
    # Known tokens that plans have covered with prompt chunks, replied or not. It decodes once they are all covered.
    num_prefilled_tokens: int = 0
    num_tokens_to_prefill: int = 0
    # Drafts that the last plan let the shards propose, how far ahead, and who was asked: the next plan may check at
    # most so many.
    num_proposed_drafts: int = 0
    proposed_depth: int = 0
    proposal: Proposal = Proposal.NONE
    # The most tokens that each outstanding step can bring, oldest first.
    outstanding: list[int] = field(default_factory=list)
    # Prompt tokens found in the prefix cache at the first admission; None before it.
    num_cached_prompt_tokens: int | None = None
    # Groups of shards that were lost with it in a step, one soon after the other, and its tokens at the last of them.
    num_losses: int = 0
    num_tokens_at_loss: int = 0

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def num_generated_tokens(self) -> int:
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def is_suspect(self) -> bool:
        """Shards may die of it."""
        return self.num_losses >= SUSPECTED_AFTER and not self._is_cleared

    @property
    def _is_cleared(self) -> bool:
        return self.num_tokens >= self.num_tokens_at_loss + CLEARED_AFTER

    def note_loss(self) -> None:
        """A group of shards was lost while it had a step of this sequence."""
        self.num_losses = 1 if self._is_cleared else self.num_losses + 1
        self.num_tokens_at_loss = self.num_tokens

    @property
    def is_prefilling(self) -> bool:
        return self.num_prefilled_tokens < self.num_tokens_to_prefill

    @property
    def min_tokens_after_outstanding(self) -> int:
        """Each outstanding step that yields tokens brings at least one."""
        return len(self.token_ids) + len(self.outstanding) - self.outstanding.count(0)

    @property
    def max_tokens_after_outstanding(self) -> int:
        return min(len(self.token_ids) + sum(self.outstanding), self.max_num_tokens)
