"""The router's process in this one: what its configuration says is what clients and shards meet."""

import asyncio
import contextlib
import os
import signal
from dataclasses import replace
from pathlib import Path

import grpc
import pytest

from drafthouse.v1 import generation_pb2, generation_pb2_grpc
from launcher.readiness import free_ports
from router.config import RouterConfig, parse_args
from router.server import Server
from tests.engines import run
from tests.router.fake_shard import BLOCK_SIZE, FakeGroup, FakeShards
from tests.router.tiny_tokenizers import byte_level, save

PROMPT = list(range(3 * BLOCK_SIZE))


class Client:
    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.stub: generation_pb2_grpc.GenerationServiceAsyncStub = generation_pb2_grpc.GenerationServiceStub(channel)

    async def is_served(self) -> bool:
        with contextlib.suppress(grpc.aio.AioRpcError):
            await self.stub.GetModelInfo(generation_pb2.GetModelInfoRequest(), timeout=5)
            return True
        return False

    async def usage(self, prompt: list[int], *, new: int = 4, stop: list[str] | None = None) -> generation_pb2.Usage:
        stopping = generation_pb2.StoppingCriteria(max_new_tokens=new, ignore_eos=True, stop_strings=stop)
        request = generation_pb2.GenerateRequest(token_ids=generation_pb2.TokenIds(ids=prompt), stopping=stopping)
        responses = [response async for response in self.stub.Generate(request, timeout=10)]
        return responses[-1].usage

    async def refusal(self, prompt: list[int], *, new: int = 4, stop: list[str] | None = None) -> grpc.StatusCode:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await self.usage(prompt, new=new, stop=stop)
        return caught.value.code()


class Running:
    """A server until SIGTERM, with a client."""

    def __init__(self, config: RouterConfig) -> None:
        self._config = config

    async def __aenter__(self) -> Client:
        server = Server(self._config)
        await server.start()
        self._life = asyncio.create_task(server.serve())
        self._channel = grpc.aio.insecure_channel(f"{self._config.hostname}:{self._config.grpc_port}")
        client = Client(self._channel)
        while not await client.is_served():
            await asyncio.sleep(0.01)
        return client

    async def __aexit__(self, *_: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        await self._life
        await self._channel.close()


@pytest.fixture
def config(tmp_path: Path) -> RouterConfig:
    port, grpc_port = free_ports(2)
    words = {
        "model-path": save(tmp_path, byte_level()),
        "model-id": "tiny",
        "revision": "r1",
        "num-shard": 2,
        "shard-uds-path": tmp_path / "s",
        "run-dir": tmp_path,
        "port": port,
        "grpc-port": grpc_port,
        "max-concurrent-requests": 3,
        "max-input-tokens": 20,
        "max-stop-sequences": 2,
        "payload-limit": 2000,
        "graceful-termination-timeout": 0.2,
        "step-timeout": 0.5,
    }
    return parse_args([f"--{name}={value}" for name, value in words.items()])


@pytest.mark.parametrize("disable", [False, True])
def test_a_prompt_that_was_here_is_computed_anew_if_that_was_asked(
    disable: bool, config: RouterConfig, tmp_path: Path
) -> None:
    async def scenario() -> None:
        changed = replace(config, disable_prefix_caching=disable)
        async with FakeShards(tmp_path, FakeGroup(num_ranks=2)), Running(changed) as client:
            assert (await client.usage(PROMPT)).cached_prompt_tokens == 0
            again = await client.usage(PROMPT)
            assert (again.cached_prompt_tokens > 0) is not disable

    run(scenario)


def test_limits_and_names_are_those_of_the_configuration(config: RouterConfig, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with FakeShards(tmp_path, FakeGroup(num_ranks=2)), Running(config) as client:
            info = await client.stub.GetModelInfo(generation_pb2.GetModelInfoRequest())
            assert (info.model_id, info.revision, info.num_shards) == ("tiny", "r1", 2)
            assert (await client.usage([1] * 20, stop=["x", "y"])).prompt_tokens == 20
            assert await client.refusal([1] * 21) is grpc.StatusCode.INVALID_ARGUMENT
            assert await client.refusal([1], stop=["x", "y", "z"]) is grpc.StatusCode.INVALID_ARGUMENT
            assert await client.refusal([1], stop=["x" * 2000]) is grpc.StatusCode.RESOURCE_EXHAUSTED

    run(scenario)


def test_more_requests_than_the_configuration_lets_in_are_refused(config: RouterConfig, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with FakeShards(tmp_path, FakeGroup(num_ranks=2, latency_s=0.05)), Running(config) as client:
            results = await asyncio.gather(*(client.usage([i], new=20) for i in range(5)), return_exceptions=True)
            refused = [each.code() for each in results if isinstance(each, grpc.aio.AioRpcError)]
            assert refused == [grpc.StatusCode.RESOURCE_EXHAUSTED] * 2

    run(scenario)


def test_a_silent_rank_and_an_open_stream_are_waited_for_as_long_as_configured(
    config: RouterConfig, tmp_path: Path
) -> None:
    group = FakeGroup(num_ranks=2)
    group.silent_from_step = 3

    async def scenario() -> None:
        async with FakeShards(tmp_path, group):
            async with Running(config) as client:
                left_open = asyncio.create_task(client.refusal([1], new=100))
                while not group.aborts:
                    await asyncio.sleep(0.01)
            assert "within 0.5 s" in group.aborts[0]
            assert await left_open is grpc.StatusCode.UNAVAILABLE

    run(scenario)
