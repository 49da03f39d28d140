"""The real server on loopback, before a fake engine."""

import asyncio
import functools
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_status import rpc_status

from drafthouse.v1 import generation_pb2, generation_pb2_grpc
from router.errors import DeadlineExceeded, Overloaded, ShardsDied, Unavailable
from router.grpc_server import GrpcServer
from router.tokenizer import Tokenizer
from tests.router.fake_engine import MAX_REQUESTS, PAYLOAD_LIMIT, Served, eventually, serve

GenerateRequest = generation_pb2.GenerateRequest


@asynccontextmanager
async def session() -> AsyncIterator[tuple[Served, grpc.aio.Channel, Any]]:
    async with serve() as served, grpc.aio.insecure_channel(served.address) as channel:
        yield served, channel, generation_pb2_grpc.GenerationServiceStub(channel)


def in_loop(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    @functools.wraps(test)
    def run(*arguments: Any, **named: Any) -> None:
        asyncio.run(asyncio.wait_for(test(*arguments, **named), timeout=120))  # type: ignore[arg-type]

    return run


async def generate(stub: Any, **fields: Any) -> list[generation_pb2.GenerateResponse]:
    return [response async for response in stub.Generate(GenerateRequest(**fields))]


async def failure(stub: Any, **fields: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await generate(stub, **fields)
    return caught.value


def detail(error: grpc.aio.AioRpcError, message: Any) -> Any:
    status = rpc_status.from_call(error)
    assert status is not None
    assert len(status.details) == 1
    assert status.details[0].Unpack(message)
    return message


@in_loop
async def test_each_delta_is_a_message_and_the_last_one_sums_up() -> None:
    async with session() as (served, _, stub):
        responses = await generate(stub, token_ids={"ids": [65, 66, 67]}, logprobs=True)
        assert [list(r.token_ids) for r in responses] == [[65], [66], [67]]
        assert "".join(r.text for r in responses) == served.engine.tokenizer.decode([65, 66, 67])
        assert [list(r.logprobs) for r in responses] == [[-0.5]] * 3
        assert [r.finish_reason for r in responses] == [0, 0, generation_pb2.FINISH_REASON_STOP]
        assert not responses[0].HasField("usage")
        assert not any(r.HasField("seed") for r in responses)
        last = responses[-1]
        assert (last.usage.prompt_tokens, last.usage.generated_tokens, last.usage.cached_prompt_tokens) == (3, 3, 1)
        stats = last.speculation
        assert (stats.steps, stats.drafted_tokens, stats.accepted_tokens) == (2, 5, 4)
        assert served.num_requests("stop") == 1
        value = served.metrics.registry.get_sample_value("drafthouse_request_duration_seconds_count")
        assert value == 1


@in_loop
async def test_choices_are_interleaved_and_each_reports_its_seed_once() -> None:
    async with session() as (served, _, stub):
        responses = await generate(
            stub,
            token_ids={"ids": [1] * 20},
            n=2,
            sampling={"temperature": 1, "seed": 7},
            stopping={"max_new_tokens": 20},
        )
        order = [r.index for r in responses]
        assert sorted(order) == [0] * 20 + [1] * 20
        assert order != sorted(order)
        seeds = [(r.index, r.seed) for r in responses if r.HasField("seed")]
        assert sorted(seeds) == [(i, served.engine.requests[i].sampling.seed) for i in (0, 1)]
        assert seeds[0] == (0, 7)
        assert [r.finish_reason for r in responses if r.finish_reason] == [generation_pb2.FINISH_REASON_LENGTH] * 2
        assert (served.num_requests("length"), served.num_requests("stop")) == (1, 0)


@in_loop
async def test_an_invalid_request_names_its_field_and_the_next_is_served() -> None:
    async with session() as (served, _, stub):
        error = await failure(stub, text="a", sampling={"temperature": -1})
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "sampling.temperature" in error.details()
        (violation,) = detail(error, error_details_pb2.BadRequest()).field_violations
        assert violation.field == "sampling.temperature"
        assert await generate(stub, text="a")
        assert (served.num_requests("invalid"), served.num_requests("stop")) == (1, 1)
        assert served.engine.num_open == 0


@in_loop
async def test_a_full_queue_says_when_to_retry() -> None:
    async with session() as (served, _, stub):
        served.engine.error = Overloaded("128 requests are waiting", retry_after_s=2.5)
        error = await failure(stub, text="abc", n=3)
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert detail(error, error_details_pb2.RetryInfo()).retry_delay.ToMilliseconds() == 2500
        # The client may have the error before it is counted.
        await eventually(lambda: served.num_requests("overloaded") == 1)
        await eventually(lambda: served.engine.num_open == 0)


@in_loop
async def test_long_messages_that_wait_to_be_tokenized_are_counted_too(monkeypatch: pytest.MonkeyPatch) -> None:
    async with session() as (served, _, stub):
        release, encode = threading.Event(), served.engine.tokenizer.encode

        def slowly(_: Tokenizer, text: str) -> list[int]:
            release.wait()
            return encode(text)

        monkeypatch.setattr(Tokenizer, "encode", slowly)
        served.engine.most_requests = 6
        # More than are worked on at a time.
        waiting = [asyncio.create_task(generate(stub, text="word " * 2000)) for _ in range(6)]
        try:
            # The last of them was let in beside the others.
            await eventually(lambda: served.engine.most_others == 5)
            assert (await failure(stub, text="word " * 2000)).code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            with pytest.raises(grpc.aio.AioRpcError, match="RESOURCE_EXHAUSTED"):
                await stub.Tokenize(generation_pb2.TokenizeRequest(text="word " * 2000))
            waiting.pop().cancel()
        finally:
            release.set()
        assert all(responses[-1].finish_reason for responses in await asyncio.gather(*waiting))
        assert await generate(stub, text="word " * 2000)


@in_loop
async def test_many_little_messages_are_a_long_one(monkeypatch: pytest.MonkeyPatch) -> None:
    async with session() as (_, __, stub):
        threads: list[str] = []

        def render(_: Tokenizer, messages: list[dict[str, str]]) -> list[int]:
            threads.append(threading.current_thread().name)
            return [1]

        monkeypatch.setattr(Tokenizer, "apply_chat_template", render)
        for number in (1, 1000):
            chat = generation_pb2.ChatMessages(messages=[generation_pb2.ChatMessage(role="user")] * number)
            await stub.Tokenize(generation_pb2.TokenizeRequest(chat=chat))
        here, beside = threads
        assert here == threading.current_thread().name
        assert beside.startswith("long-message")


@in_loop
async def test_calls_beyond_any_use_are_refused_before_their_messages_are_read() -> None:
    async with session() as (served, _, stub):
        served.engine.hang = True
        calls = [stub.Generate(generation_pb2.GenerateRequest(text="abc")) for _ in range(4 * MAX_REQUESTS + 100)]
        for call in calls:
            await call.read()
        assert (await failure(stub, text="abc")).code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        for call in calls:
            call.cancel()
        served.engine.hang = False
        await eventually(lambda: served.engine.num_open == 0)
        assert await generate(stub, text="abc")


@pytest.mark.parametrize(
    ("raised", "code", "status"),
    [
        (DeadlineExceeded("too late"), grpc.StatusCode.DEADLINE_EXCEEDED, "deadline"),
        (Unavailable("gone"), grpc.StatusCode.UNAVAILABLE, "error"),
        (ShardsDied("of it"), grpc.StatusCode.INTERNAL, "error"),
        (KeyError("secret"), grpc.StatusCode.INTERNAL, "error"),
    ],
)
@in_loop
async def test_an_error_in_mid_stream_has_its_code_and_is_counted_once(
    raised: Exception, code: grpc.StatusCode, status: str
) -> None:
    async with session() as (served, _, stub):
        served.engine.error = raised
        error = await failure(stub, text="abc")
        assert error.code() is code
        assert "secret" not in error.details()
        served.engine.error = None
        assert await generate(stub, text="abc")
        assert (served.num_requests(status), served.num_requests("stop")) == (1, 1)


@pytest.mark.parametrize("n", [1, 3])
@in_loop
async def test_a_client_that_leaves_in_mid_stream_closes_every_choice(n: int) -> None:
    async with session() as (served, _, stub):
        served.engine.hang = True
        call = stub.Generate(GenerateRequest(text="abc", n=n))
        await call.read()
        await eventually(lambda: served.engine.num_open == n)
        call.cancel()
        await eventually(lambda: served.engine.num_open == 0)
        assert served.engine.num_closed_early == n
        await eventually(lambda: served.num_requests("cancelled") == 1)
        served.engine.hang = False
        assert await generate(stub, text="abc")


@in_loop
async def test_a_deadline_reaches_the_engine_and_ends_the_stream() -> None:
    async with session() as (served, _, stub):
        served.engine.hang = True
        call = stub.Generate(GenerateRequest(text="abc"), timeout=0.3)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in call:
                pass
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await eventually(lambda: served.engine.num_open == 0)
        await eventually(lambda: served.num_requests("deadline") == 1)
        assert served.engine.requests[0].deadline_s is not None
        served.engine.hang = False
        await generate(stub, text="abc")
        assert served.engine.requests[1].deadline_s is None


@in_loop
async def test_a_message_over_the_limit_is_refused_and_the_channel_goes_on() -> None:
    async with session() as (served, _, stub):
        error = await failure(stub, text="a" * PAYLOAD_LIMIT)
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert served.engine.requests == []
        assert await generate(stub, text="abc")
        # Long but allowed: tokenized beside the event loop.
        assert (await stub.Tokenize(generation_pb2.TokenizeRequest(text="a" * 90_000))).token_ids[1:] == [64] * 90_000


@in_loop
async def test_a_service_that_drains_or_has_not_started_is_unavailable() -> None:
    async with session() as (served, _, stub):
        served.engine.is_draining = True
        assert (await failure(stub, text="abc")).code() is grpc.StatusCode.UNAVAILABLE
        served.engine.is_draining, served.engine.has_started = False, False
        assert (await failure(stub, text="abc")).code() is grpc.StatusCode.UNAVAILABLE


@in_loop
async def test_health_follows_the_engine() -> None:
    async with session() as (served, channel, _):
        stub = health_pb2_grpc.HealthStub(channel)
        watch = stub.Watch(health_pb2.HealthCheckRequest())
        responses = health_pb2.HealthCheckResponse
        assert (await watch.read()).status == responses.SERVING
        for is_ready, status in ((True, responses.SERVING), (False, responses.NOT_SERVING)):
            served.engine.is_ready = is_ready
            for name in ("", "drafthouse.v1.GenerationService"):
                assert (await stub.Check(health_pb2.HealthCheckRequest(service=name))).status == status
        assert (await watch.read()).status == responses.NOT_SERVING
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Check(health_pb2.HealthCheckRequest(service="other"))
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        unknown = stub.Watch(health_pb2.HealthCheckRequest(service="other"))
        assert (await unknown.read()).status == responses.SERVICE_UNKNOWN


@in_loop
async def test_reflection_lists_the_services() -> None:
    async with session() as (_, channel, __):
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        call = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
        names = {service.name for service in (await call.read()).list_services_response.service}
        assert names >= {"drafthouse.v1.GenerationService", "grpc.health.v1.Health"}


@in_loop
async def test_tokenize_answers_with_ids_and_tokens() -> None:
    async with session() as (_, __, stub):
        response = await stub.Tokenize(generation_pb2.TokenizeRequest(text="hello w"))
        assert list(response.tokens) == ["<s>", "hello", "Ġw"]
        chat = generation_pb2.ChatMessages(messages=[generation_pb2.ChatMessage(role="user", content="x")])
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Tokenize(generation_pb2.TokenizeRequest(chat=chat))
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("method", ["Generate", "Tokenize", "GetModelInfo"])
def test_what_is_no_message_is_the_clients_error(method: str, caplog: pytest.LogCaptureFixture) -> None:
    @in_loop
    async def send() -> None:
        async with session() as (served, channel, stub):
            call = channel.unary_stream if method == "Generate" else channel.unary_unary
            reply = call(f"/drafthouse.v1.GenerationService/{method}")(b"\xff\xff\xff")
            with pytest.raises(grpc.aio.AioRpcError, match=r"request: cannot be read: .*Wire format") as caught:
                await (anext(aiter(reply)) if method == "Generate" else reply)
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert served.num_requests("invalid") == (method == "Generate")
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await channel.unary_unary("/drafthouse.v1.GenerationService/Nothing")(b"")
            assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
            assert await generate(stub, text="abc")

    send()
    assert "Traceback" not in caplog.text
    assert not caplog.records


@in_loop
async def test_model_info_carries_every_field() -> None:
    async with session() as (_, __, stub):
        info = await stub.GetModelInfo(generation_pb2.GetModelInfoRequest())
        assert {descriptor.name for descriptor, _ in info.ListFields()} == set(info.DESCRIPTOR.fields_by_name)
        assert dict(info.kernels) == {"linear": "torch"}


@in_loop
async def test_a_taken_port_is_one_clear_error() -> None:
    async with session() as (served, _, stub):
        engine, port = served.engine, served.grpc_server.port
        second = GrpcServer(
            engine,
            engine.tokenizer,
            served.metrics,
            host="127.0.0.1",
            port=port,
            payload_limit=1000,
            max_concurrent_requests=9,
        )
        with pytest.raises(OSError, match=f"127.0.0.1:{port}.*--grpc-port"):
            await second.start()
        assert await generate(stub, text="abc")
