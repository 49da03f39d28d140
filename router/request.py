"""What the router's edges and its engine say to each other: a request, the deltas of its answer, the engine's face.

Owns these types and nothing else; knows nothing of gRPC, HTTP, text processing or scheduling.
"""

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from router.sequence import FinishReason, SamplingParams


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One choice of a request, checked and complete.

    `sampling.seed` is always set and already belongs to this choice. `stop_token_ids` holds the model's end tokens
    unless the client wanted them ignored. `deadline_s` is a value of time.monotonic().
    """

    request_id: str
    prompt_token_ids: list[int]
    sampling: SamplingParams
    max_new_tokens: int
    stop_strings: tuple[str, ...]
    stop_token_ids: frozenset[int]
    num_speculative_tokens: int
    logprobs: bool
    deadline_s: float | None


@dataclass(frozen=True, slots=True)
class GenerationOutput:
    """What a step, or a few, added to a choice. Exactly one output, the last, has a finish reason and the numbers below
    it."""

    text: str
    token_ids: list[int]
    logprobs: list[float]
    finish_reason: FinishReason | None = None
    num_cached_prompt_tokens: int = 0
    num_generated_tokens: int = 0
    num_steps: int = 0
    num_drafted_tokens: int = 0
    num_accepted_tokens: int = 0


MOST_CHOICES = 8


@dataclass(frozen=True, slots=True)
class Limits:
    """What a single request may ask for. Tokens, unless the name says otherwise."""

    # Prompt and generated tokens together.
    max_total_tokens: int
    max_input_tokens: int
    # How many tokens ahead drafts reach; 0 when speculation is off.
    max_speculative_tokens: int
    # Rows of the model's embedding: token ids are below it.
    vocab_size: int
    max_stop_sequences: int = 4
    max_choices: int = MOST_CHOICES


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What is being served; the fields of the proto's GetModelInfoResponse, which says what they mean."""

    model_id: str
    revision: str
    weights: str
    model_type: str
    dtype: str
    device: str
    num_shards: int
    max_total_tokens: int
    max_batch_size: int
    num_blocks: int
    block_size: int
    vocab_size: int
    speculate: int
    tree_size: int
    heads: str
    version: str
    # Names as in the metrics' label, e.g. "ngram".
    speculation_methods: tuple[str, ...] = ()
    kernels: Mapping[str, str] = field(default_factory=dict)


class GenerationEngine(Protocol):
    """What the servers need of an engine. Its methods may raise what router.errors names, and nothing else."""

    def generate(self, request: GenerationRequest, /) -> AsyncGenerator[GenerationOutput, None]:
        """Deltas of the choice, the last with a finish reason.

        Closing the generator, or cancelling the task that iterates it, cancels the sequence. Raises Overloaded at
        the first step when the queue is full, DeadlineExceeded when the deadline passes, ShardsDied, Unavailable.
        """

    def refuse_if_full(self, num_others: int, /) -> None:
        """Raises Overloaded where a request more has no room beside so many that have not come here yet."""

    def limits(self) -> Limits:
        """Raises Unavailable until the shards have said what they can."""

    def model_info(self) -> ModelInfo:
        """Raises Unavailable until the shards have said what they serve."""

    @property
    def is_ready(self) -> bool:
        """Every shard answers and new requests are accepted: what the health checks say."""

    @property
    def is_draining(self) -> bool:
        """No new request is accepted; those that run are finished."""
