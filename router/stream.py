"""One choice on its way to its client: its sequence, its text, its clock, and what came since its last message.

Every stream ends with exactly one terminal event: an output with a finish reason, or an error. When it may say what
came is the affair of router/turns.py.
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
    """`is_ended`: nothing more comes, and nobody waits for it if there is no `last`. `is_silent`: it never had a
    turn."""

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
    is_silent: bool = True
    # What came since the last message. Stop strings have to be looked for at once; other text is made when it is sent,
    # of many tokens as cheaply as of one.
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    text: str = ""
    last: FinishReason | RequestError | None = None
    _turn: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def has_turn(self) -> bool:
        """Whether it may say what came, and has not done so yet."""
        return self._turn.is_set()

    def give_turn(self) -> None:
        """Whoever waits for the next output gets it."""
        self.is_silent = False
        self._turn.set()

    async def next_output(self) -> GenerationOutput:
        """All that came since the last call, when it is the stream's turn, or ended. Raises the error that ends the
        stream, after the tokens that came before it."""
        await self._turn.wait()
        if not isinstance(self.last, RequestError):
            self._turn.clear()
            return self._output(self.last)
        if not self.token_ids:
            raise self.last
        return self._output(None)

    def take(self, result: SequenceResult, reason: FinishReason | None) -> tuple[int, FinishReason | None]:
        """How many of the tokens of a result are kept, and why they are the last, if they are: for this `reason`, or
        because of a stop string, which ends the text before it."""
        kept = len(result.token_ids)
        if self.request.stop_strings:
            detokenized = self.detokenizer.push(result.token_ids)
            self.text += detokenized.text
            kept = detokenized.num_tokens
            reason = FinishReason.STOP if self.detokenizer.has_stopped else reason
        self.token_ids += result.token_ids[:kept]
        if self.request.logprobs:
            self.logprobs += result.logprobs[:kept]
        self.num_steps += 1
        self.num_drafted_tokens += result.drafted
        self.num_accepted_tokens += min(result.accepted, kept)
        self.num_generated_tokens += kept
        return kept, reason

    def close(self, last: FinishReason | RequestError | None) -> None:
        """What is said last; None: nobody listens."""
        self.is_ended = True
        if self.deadline is not None:
            self.deadline.cancel()
        self.last = last
        self.give_turn()

    def _output(self, reason: FinishReason | None) -> GenerationOutput:
        text, token_ids, logprobs = self.text, self.token_ids, self.logprobs
        self.text, self.token_ids, self.logprobs = "", [], []
        if not self.request.stop_strings:
            text = self.detokenizer.push(token_ids).text
        if reason is None:
            return GenerationOutput(text, token_ids, logprobs)
        text += self.detokenizer.flush()
        # Bytes that are no character until nothing more comes may be one that ends the text.
        reason = FinishReason.STOP if self.detokenizer.has_stopped else reason
        return GenerationOutput(
            text,
            token_ids,
            logprobs,
            finish_reason=reason,
            num_cached_prompt_tokens=self.sequence.num_cached_prompt_tokens or 0,
            num_generated_tokens=self.num_generated_tokens,
            num_steps=self.num_steps,
            num_drafted_tokens=self.num_drafted_tokens,
            num_accepted_tokens=self.num_accepted_tokens,
        )
