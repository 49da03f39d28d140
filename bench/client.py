"""A client of the public gRPC service that notes when tokens arrive."""

import asyncio
import itertools
import math
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import dataclass, replace

import grpc

from bench.prompts import Prompt
from bench.sample import Arrival, Sample
from drafthouse.v1 import generation_pb2, generation_pb2_grpc

# Lengths of answers over their mean are between so much less than one and so much more, and spread by the golden ratio:
# however many there are, evenly.
_SPREAD, _GOLDEN_RATIO = 0.25, (math.sqrt(5) - 1) / 2


@dataclass(slots=True)
class Busy:
    """What came while so many answers were under way; `num_drafted` are the drafts that were checked."""

    num_tokens: int = 0
    num_steps: int = 0
    num_drafted: int = 0
    seconds: float = 0.0


class Client:
    """Greedy answers of exactly `max_new_tokens` tokens. Use inside `async with`."""

    def __init__(self, address: str, *, max_new_tokens: int) -> None:
        self._channel = grpc.aio.insecure_channel(address)
        self._stub = generation_pb2_grpc.GenerationServiceStub(self._channel)
        self._max_new_tokens = max_new_tokens

    async def __aenter__(self) -> "Client":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._channel.close()

    async def model_info(self) -> generation_pb2.GetModelInfoResponse:
        return await self._stub.GetModelInfo(generation_pb2.GetModelInfoRequest())

    async def token_ids(self, prompt: Prompt) -> list[int]:
        """The prompt as the service reads it, chat template included."""
        if prompt.token_ids:
            return list(prompt.token_ids)
        request = generation_pb2.TokenizeRequest(chat=_chat(prompt))
        return list((await self._stub.Tokenize(request)).token_ids)

    async def generate(self, prompt: Prompt, *, speculate: int | None, max_new_tokens: int | None = None) -> Sample:
        """`speculate` None leaves it to the server, `max_new_tokens` None to this client."""
        token_ids: list[int] = []
        arrivals: list[Arrival] = []
        num_steps = 0
        start_s = time.perf_counter()
        async for response in self._responses(prompt, speculate, max_new_tokens):
            if response.token_ids:
                arrivals.append(Arrival(time.perf_counter() - start_s, len(response.token_ids)))
                token_ids += response.token_ids
            num_steps = response.speculation.steps
        return Sample(prompt.id, prompt.workload, tuple(token_ids), tuple(arrivals), num_steps)

    async def keep_busy(
        self, prompts: Iterable[Prompt], *, at_once: int, speculate: int | None, max_new_tokens: int | None = None
    ) -> Busy:
        """Has `at_once` answers under way, each followed by the next prompt's, until no prompt is left to begin.

        What is then under way is given up, its tokens so far count. Few answers are of one length: such would end in
        the same step where nothing is drafted and not where something is, and the prompts of those behind them would
        share a step or not.
        """
        lengths = _lengths(max_new_tokens or self._max_new_tokens)
        left, seen, start_s = zip(prompts, lengths, strict=False), Busy(), time.perf_counter()

        async def one_by_one() -> None:
            for prompt, length in left:
                num_steps = num_drafted = 0
                async for response in self._responses(prompt, speculate, length):
                    seen.num_tokens += len(response.token_ids)
                    seen.num_steps += response.speculation.steps - num_steps
                    seen.num_drafted += response.speculation.drafted_tokens - num_drafted
                    num_steps, num_drafted = response.speculation.steps, response.speculation.drafted_tokens

        users = [asyncio.create_task(one_by_one()) for _ in range(at_once)]
        try:
            done, _ = await asyncio.wait(users, return_when=asyncio.FIRST_COMPLETED)
            found = replace(seen, seconds=time.perf_counter() - start_s)
            for user in done:
                user.result()
        finally:
            for user in users:
                user.cancel()
            await asyncio.gather(*users, return_exceptions=True)
        return found

    def _responses(
        self, prompt: Prompt, speculate: int | None, max_new_tokens: int | None
    ) -> AsyncIterator[generation_pb2.GenerateResponse]:
        request = generation_pb2.GenerateRequest(speculate=speculate)
        if prompt.token_ids:
            request.token_ids.ids.extend(prompt.token_ids)
        else:
            request.chat.CopyFrom(_chat(prompt))
        request.stopping.max_new_tokens = max_new_tokens or self._max_new_tokens
        request.stopping.ignore_eos = True
        return aiter(self._stub.Generate(request))

    async def generate_together(
        self, prompts: list[Prompt], *, speculate: int | None, max_new_tokens: int | None = None
    ) -> list[Sample]:
        asked = (self.generate(p, speculate=speculate, max_new_tokens=max_new_tokens) for p in prompts)
        return await asyncio.gather(*asked)


def _chat(prompt: Prompt) -> generation_pb2.ChatMessages:
    return generation_pb2.ChatMessages(messages=[generation_pb2.ChatMessage(role="user", content=prompt.text)])


def _lengths(mean: int) -> Iterator[int]:
    for number in itertools.count(1):
        yield max(1, round(mean * (1 + _SPREAD * (2 * (number * _GOLDEN_RATIO % 1) - 1))))
