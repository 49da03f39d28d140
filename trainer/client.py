"""Many generations at once over the public gRPC service, each whole. Knows nothing of prompts, answers or files."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TypeVar

import grpc
from grpc_status import rpc_status

from drafthouse.v1 import generation_pb2, generation_pb2_grpc, sampling_pb2
from trainer.errors import TrainError

# In flight at once: more than any CPU batch, and enough to keep a GPU's batch full while answers end and begin.
CONCURRENCY = 64
_RETRY_S = 0.5
_Item = TypeVar("_Item")


@dataclass(frozen=True, slots=True)
class Generated:
    """`ended`: by an end token, which is the last of `token_ids`; else the length was reached."""

    token_ids: list[int]
    ended: bool


class Refused(TrainError):
    """This service takes no such prompt."""


class Client:
    """Made by `connected`. `max_total_tokens`: prompt and answer, of one sequence."""

    def __init__(self, stub: "generation_pb2_grpc.GenerationServiceAsyncStub", max_total_tokens: int) -> None:
        self._stub = stub
        self.max_total_tokens = max_total_tokens

    async def generate(
        self, prompt: Sequence[int], *, max_new_tokens: int, temperature: float = 0.0, seed: int = 0
    ) -> Generated:
        """Raises Refused and grpc.aio.AioRpcError; a full queue is waited for."""
        request = generation_pb2.GenerateRequest(
            token_ids=generation_pb2.TokenIds(ids=prompt),
            sampling=sampling_pb2.SamplingParams(temperature=temperature, seed=seed),
            stopping=generation_pb2.StoppingCriteria(max_new_tokens=max_new_tokens),
            speculate=0,
        )
        while True:
            token_ids: list[int] = []
            reason = generation_pb2.FINISH_REASON_UNSPECIFIED
            try:
                async for response in self._stub.Generate(request):
                    token_ids += response.token_ids
                    reason = response.finish_reason
                return Generated(token_ids, reason == generation_pb2.FINISH_REASON_STOP)
            except grpc.aio.AioRpcError as error:
                is_full = error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
                # A message that is too large has the same code, but says nothing of a time to try again.
                if error.code() is grpc.StatusCode.INVALID_ARGUMENT or (is_full and not rpc_status.from_call(error)):
                    raise Refused(error.details()) from error
                if not is_full:
                    raise
            await asyncio.sleep(_RETRY_S)


@asynccontextmanager
async def connected(address: str) -> AsyncIterator[Client]:
    """Raises TrainError where nothing answers, or a request fails inside."""
    # A proxy is for the web; the library would take it even for this machine.
    async with grpc.aio.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        stub: generation_pb2_grpc.GenerationServiceAsyncStub = generation_pb2_grpc.GenerationServiceStub(channel)
        try:
            info = await stub.GetModelInfo(generation_pb2.GetModelInfoRequest())
            yield Client(stub, info.max_total_tokens)
        except grpc.aio.AioRpcError as error:
            reason = f"{error.details()} ({error.code().name})"
            raise TrainError(
                f"the service at {address} failed: {reason}; the same command goes on from here"
            ) from error


async def for_all(items: Sequence[_Item], work: Callable[[_Item], Awaitable[None]]) -> None:
    """`work` for each, CONCURRENCY at once. The first error ends all of them and is raised."""
    waiting = iter(items)

    async def worker() -> None:
        for item in waiting:
            await work(item)

    tasks = [asyncio.create_task(worker()) for _ in range(min(CONCURRENCY, len(items)))]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
