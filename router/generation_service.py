"""The public service: each RPC from its message to its reply, and exactly one count for each request that ends.

Owns the way between protobuf and the engine's types. Knows nothing of sockets, scheduling or shards.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable
from contextlib import aclosing, suppress
from dataclasses import asdict
from typing import Any, TypeVar

import grpc

from drafthouse.v1 import generation_pb2, generation_pb2_grpc, sampling_pb2
from router.errors import RequestError, Unavailable
from router.grpc_errors import request_status, to_grpc_status
from router.interleave import interleave
from router.long_messages import LongMessages
from router.metrics import Metrics
from router.request import GenerationEngine, GenerationOutput, GenerationRequest
from router.sequence import FinishReason
from router.tokenizer import Tokenizer
from router.validation import validate_generate, validate_tokenize

logger = logging.getLogger(__name__)

_Reply = TypeVar("_Reply")
_Context = grpc.aio.ServicerContext[Any, Any]

_FINISH_REASONS = {
    FinishReason.STOP: generation_pb2.FINISH_REASON_STOP,
    FinishReason.LENGTH: generation_pb2.FINISH_REASON_LENGTH,
}
# A client keeps the same deadline and may hang up so much before the clock here says it is over.
_DEADLINE_SLACK_S = 0.05


class GenerationService(generation_pb2_grpc.GenerationServiceServicer):
    def __init__(self, engine: GenerationEngine, tokenizer: Tokenizer, metrics: Metrics) -> None:
        self._engine = engine
        self._tokenizer = tokenizer
        self._metrics = metrics
        self._long_messages = LongMessages(engine.refuse_if_full)

    def note_malformed(self, method: str) -> None:
        """A message that could not be read, for this method."""
        if method == "Generate":
            self._metrics.requests.labels("invalid").inc()
            self._metrics.request_duration_seconds.observe(0.0)

    async def Generate(  # type: ignore[override]  # writes to the context, so that a client's leaving is seen here
        self, request: generation_pb2.GenerateRequest, context: _Context
    ) -> None:
        arrival_s = time.monotonic()
        remaining_s = context.time_remaining()
        deadline_s = None if remaining_s is None else arrival_s + remaining_s
        status = "error"
        try:
            status = await self._generate(request, context, deadline_s)
        except (asyncio.CancelledError, grpc.aio.InternalError) as error:
            # The client left, or grpc ended the call at its deadline before the engine did; a message under way then
            # fails.
            is_late = deadline_s is not None and time.monotonic() >= deadline_s - _DEADLINE_SLACK_S
            status = "deadline" if is_late else "cancelled"
            raise asyncio.CancelledError from error
        except Exception as error:
            status = request_status(error)
            await _abort(context, error)
        finally:
            self._metrics.requests.labels(status).inc()
            self._metrics.request_duration_seconds.observe(time.monotonic() - arrival_s)

    async def Tokenize(
        self, request: generation_pb2.TokenizeRequest, context: _Context
    ) -> generation_pb2.TokenizeResponse:
        def tokenize() -> generation_pb2.TokenizeResponse:
            token_ids = validate_tokenize(request, self._tokenizer)
            tokens = [self._tokenizer.token(token_id) for token_id in token_ids]
            return generation_pb2.TokenizeResponse(token_ids=token_ids, tokens=tokens)

        return await _answer(context, self._long_messages.run(request, tokenize))

    async def GetModelInfo(
        self, request: generation_pb2.GetModelInfoRequest, context: _Context
    ) -> generation_pb2.GetModelInfoResponse:
        return await _answer(context, self._model_info())

    async def _generate(
        self, message: generation_pb2.GenerateRequest, context: _Context, deadline_s: float | None
    ) -> str:
        """Streams all choices; returns the status to count."""
        if self._engine.is_draining:
            raise Unavailable("the service is shutting down")
        # Before the prompt is tokenized for nothing; who comes first is decided where it is queued.
        self._engine.refuse_if_full(0)
        limits = self._engine.limits()
        requests = await self._long_messages.run(
            message,
            lambda: validate_generate(message, tokenizer=self._tokenizer, limits=limits, deadline_s=deadline_s),
        )
        seen: set[int] = set()
        reasons: set[FinishReason] = set()
        async with aclosing(interleave([self._engine.generate(request) for request in requests])) as outputs:
            async for index, output in outputs:
                await context.write(_response(index, requests[index], output, is_first=index not in seen))
                seen.add(index)
                if output.finish_reason is not None:
                    reasons.add(output.finish_reason)
        return "length" if FinishReason.LENGTH in reasons else "stop"

    async def _model_info(self) -> generation_pb2.GetModelInfoResponse:
        info = self._engine.model_info()
        methods = [
            sampling_pb2.SpeculationMethod.Value(f"SPECULATION_METHOD_{method.upper()}")
            for method in info.speculation_methods
        ]
        return generation_pb2.GetModelInfoResponse(**(asdict(info) | {"speculation_methods": methods}))


def _response(
    index: int, request: GenerationRequest, output: GenerationOutput, *, is_first: bool
) -> generation_pb2.GenerateResponse:
    response = generation_pb2.GenerateResponse(
        index=index, text=output.text, token_ids=output.token_ids, logprobs=output.logprobs
    )
    if is_first and request.sampling.temperature > 0:
        response.seed = request.sampling.seed
    if output.finish_reason is not None:
        response.finish_reason = _FINISH_REASONS[output.finish_reason]
        response.usage.prompt_tokens = len(request.prompt_token_ids)
        response.usage.generated_tokens = output.num_generated_tokens
        response.usage.cached_prompt_tokens = output.num_cached_prompt_tokens
        response.speculation.steps = output.num_steps
        response.speculation.drafted_tokens = output.num_drafted_tokens
        response.speculation.accepted_tokens = output.num_accepted_tokens
    return response


async def _answer(context: _Context, reply: Awaitable[_Reply]) -> _Reply:
    try:
        return await reply
    except Exception as error:
        await _abort(context, error)
        raise


async def _abort(context: _Context, error: Exception) -> None:
    if not isinstance(error, RequestError):
        logger.error("request failed", exc_info=error)
    with suppress(grpc.aio.InternalError):  # the client has left
        await context.abort_with_status(to_grpc_status(error))
