"""One choice on its way to its client: its sequence, its text, its clock and its outputs.

Every stream ends with exactly one terminal event: an output with a finish reason, or an error.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from router.detokenizer import Detokenizer
from router.errors import RequestError
from router.plan import SequenceResult
from router.request import GenerationOutput, GenerationRequest, joined
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
    last_message_s: float | None = None

    async def next_output(self, interval_s: Callable[[], float]) -> GenerationOutput:
        """All that came since the last call as one, when there is something. What is neither the first nor the last
        waits until `interval_s`, asked then, has passed since that call. Raises the error that ends the stream."""
        output = await self.outputs.get()
        if self.last_message_s is not None and not _is_last(output):
            wait_s = self.last_message_s + interval_s() - time.monotonic()
            if wait_s > 0:
                await asyncio.sleep(wait_s)
        self.last_message_s = time.monotonic()
        parts = list[GenerationOutput]()
        while isinstance(output, GenerationOutput):
            parts.append(output)
            if self.outputs.empty():
                return joined(parts)
            output = self.outputs.get_nowait()
        if not parts:
            raise output
        # After the tokens that came before it.
        self.outputs.put_nowait(output)
        return joined(parts)

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


def _is_last(output: GenerationOutput | RequestError) -> bool:
    return isinstance(output, RequestError) or output.finish_reason is not None
