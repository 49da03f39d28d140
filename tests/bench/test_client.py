"""The benchmark's client against a service of its own that answers with as many tokens as it is asked for."""

import asyncio
from collections.abc import AsyncIterator

import grpc
import pytest

from bench.client import Busy, Client
from bench.prompts import Prompt
from drafthouse.v1 import generation_pb2, generation_pb2_grpc

_PROMPTS = [Prompt(f"prompt {i}", "chat", "", token_ids=(1 + i,)) for i in range(9)]


class _Service(generation_pb2_grpc.GenerationServiceServicer):
    """Two tokens a step, half of them drafts; a prompt is its number of steps. Counts who is served."""

    def __init__(self) -> None:
        self.now = self.most = self.begun = 0
        self.fails = False

    async def Generate(
        self, request: generation_pb2.GenerateRequest, context: grpc.aio.ServicerContext[object, object]
    ) -> AsyncIterator[generation_pb2.GenerateResponse]:
        self.now, self.begun = self.now + 1, self.begun + 1
        self.most = max(self.most, self.now)
        try:
            for step in range(1, request.token_ids.ids[0] + 1):
                if self.fails:
                    await context.abort(grpc.StatusCode.INTERNAL, "no more")
                await asyncio.sleep(0.01)
                stats = generation_pb2.SpeculationStats(steps=step, drafted_tokens=step)
                yield generation_pb2.GenerateResponse(token_ids=[7, 7], speculation=stats)
        finally:
            self.now -= 1


def _keep_busy(service: _Service, at_once: int) -> Busy:
    async def scenario() -> Busy:
        server = grpc.aio.server()
        generation_pb2_grpc.add_GenerationServiceServicer_to_server(service, server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        try:
            async with Client(f"127.0.0.1:{port}", max_new_tokens=1) as client:
                found = await client.keep_busy(_PROMPTS, at_once=at_once, speculate=None)
                # Who was given up is let go by the service.
                async with asyncio.timeout(10):
                    while service.now:
                        await asyncio.sleep(0.01)
                return found
        finally:
            await server.stop(0)

    return asyncio.run(scenario())


@pytest.mark.parametrize("at_once", [1, 3])
def test_so_many_are_under_way_until_no_prompt_is_left(at_once: int) -> None:
    service = _Service()
    found = _keep_busy(service, at_once)
    assert (service.most, service.begun) == (at_once, len(_PROMPTS))
    assert found.num_tokens == 2 * found.num_steps == 2 * found.num_drafted
    assert found.seconds > 0
    everything = 2 * sum(range(1, 10))
    assert found.num_tokens == everything if at_once == 1 else 0 < found.num_tokens < everything


def test_a_request_that_fails_ends_the_run() -> None:
    service = _Service()
    service.fails = True
    with pytest.raises(grpc.aio.AioRpcError, match="no more"):
        _keep_busy(service, 3)
