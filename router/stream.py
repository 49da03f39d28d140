"""One choice on its way to its client: its sequence, its text, its clock and its outputs.

Every stream ends with exactly one terminal event: an output with a finish reason, or an error.
"""

import asyncio
from dataclasses import dataclass, field

from router.detokenizer import Detokenizer
from router.errors import RequestError
from router.plan import SequenceResult
from router.request import GenerationOutput, GenerationRequest
from router.sequence import FinishReason, Sequence


@dataclass(slots=True, eq=False)
class Stream:
    request: GenerationRequest
    sequence: Sequence
    detokenizer: Detokenizer
    arrived_s: float
    is_admitted: bool = False
    last_output_s: float | None = None
    num_generated_tokens: int = 0
    num_steps: int = 0
    num_drafted_tokens: int = 0
    num_accepted_tokens: int = 0
    deadline: asyncio.TimerHandle | None = None
    is_ended: bool = False
    outputs: asyncio.Queue[GenerationOutput | RequestError] = field(default_factory=asyncio.Queue)

    def take(self, result: SequenceResult) -> tuple[GenerationOutput, int]:
        """The output of one result, and how many of its tokens are kept. A stop string ends the text before it."""
        detokenized = self.detokenizer.push(result.token_ids)
        kept = detokenized.num_tokens
        self.num_steps += 1
        self.num_drafted_tokens += result.drafted
        self.num_accepted_tokens += result.accepted
        self.num_generated_tokens += kept
        reason = FinishReason.STOP if detokenized.stopped else self.sequence.finish_reason
        if reason is None:
            return GenerationOutput(detokenized.text, result.token_ids, result.logprobs), kept
        return (
            GenerationOutput(
                detokenized.text + self.detokenizer.flush(),
                result.token_ids[:kept],
                result.logprobs[:kept],
                finish_reason=reason,
                num_cached_prompt_tokens=self.sequence.num_cached_prompt_tokens or 0,
                num_generated_tokens=self.num_generated_tokens,
                num_steps=self.num_steps,
                num_drafted_tokens=self.num_drafted_tokens,
                num_accepted_tokens=self.num_accepted_tokens,
            ),
            kept,
        )
