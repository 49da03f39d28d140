"""The trainer's client against a service that is full, refuses or fails."""

import asyncio
from collections.abc import AsyncGenerator

import pytest

from router.errors import InvalidRequest, Overloaded, Unavailable
from router.request import GenerationOutput, GenerationRequest
from tests.engines import run
from tests.router.fake_engine import PAYLOAD_LIMIT, FakeEngine, serve
from trainer import client as client_module
from trainer.client import Generated, Refused, connected, for_all
from trainer.errors import TrainError

PROMPT = [5, 6, 7]


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "_RETRY_S", 0.01)


def fails(engine: FakeEngine, times: int, error: Exception, *, after: int = 0) -> None:
    """The first `times` generations end so, `after` their first tokens."""
    generate = engine.generate

    async def failing(request: GenerationRequest, /) -> AsyncGenerator[GenerationOutput, None]:
        is_to_fail = len(engine.requests) < times
        given = 0
        async for output in generate(request):
            if is_to_fail and given == after:
                raise error
            given += 1
            yield output

    engine.generate = failing  # type: ignore[method-assign]


@pytest.mark.parametrize("after", [0, 1, 2])
def test_a_service_that_is_full_is_asked_again_and_no_token_comes_twice(after: int) -> None:
    async def scenario() -> None:
        async with serve() as served, connected(served.address) as client:
            fails(served.engine, 2, Overloaded("full", retry_after_s=1.0), after=after)
            assert await client.generate(PROMPT, max_new_tokens=3) == Generated(PROMPT, ended=False)
            assert len(served.engine.requests) == 3

    run(scenario)


def test_whether_an_answer_ended_is_told() -> None:
    async def scenario() -> None:
        async with serve() as served, connected(served.address) as client:
            assert client.max_total_tokens == served.engine.limits().max_total_tokens
            assert await client.generate(PROMPT, max_new_tokens=4) == Generated(PROMPT, ended=True)
            assert await client.generate(PROMPT, max_new_tokens=2) == Generated(PROMPT[:2], ended=False)

    run(scenario)


def test_a_request_is_what_was_asked_for_and_nothing_is_drafted() -> None:
    async def scenario() -> None:
        async with serve() as served, connected(served.address) as client:
            await client.generate(PROMPT, max_new_tokens=9, temperature=0.5, seed=2**63)
            (request,) = served.engine.requests
            assert (request.prompt_token_ids, request.max_new_tokens) == (PROMPT, 9)
            assert (request.sampling.temperature, request.num_speculative_tokens) == (0.5, 0)
            await client.generate(PROMPT, max_new_tokens=9, temperature=0.5, seed=2**63)
            await client.generate(PROMPT, max_new_tokens=9, temperature=0.5, seed=2**63 + 1)
            first, again, other = (request.sampling.seed for request in served.engine.requests)
            assert first == again != other

    run(scenario)


def test_what_the_service_refuses_is_not_asked_again() -> None:
    async def scenario() -> None:
        async with serve() as served, connected(served.address) as client:
            fails(served.engine, 99, InvalidRequest("token_ids", "is odd"))
            with pytest.raises(Refused, match="is odd"):
                await client.generate(PROMPT, max_new_tokens=3)
            assert len(served.engine.requests) == 1
            # Has the code of a full service.
            with pytest.raises(Refused):
                await client.generate([5] * PAYLOAD_LIMIT, max_new_tokens=3)

    run(scenario)


def test_a_service_that_fails_ends_the_training_with_a_message() -> None:
    async def scenario() -> None:
        async with serve() as served:
            fails(served.engine, 99, Unavailable("the shards are gone"))
            with pytest.raises(
                TrainError, match=f"{served.address} failed: .*shards are gone.*UNAVAILABLE.*goes on"
            ) as caught:
                async with connected(served.address) as client:
                    await client.generate(PROMPT, max_new_tokens=3)
            assert not isinstance(caught.value, Refused)
            assert len(served.engine.requests) == 1

    run(scenario)


def test_where_nobody_listens_the_message_names_the_address() -> None:
    async def scenario() -> None:
        with pytest.raises(TrainError, match="service at unix:/nowhere/at/all failed"):
            async with connected("unix:/nowhere/at/all"):
                pass

    run(scenario)


def test_all_are_worked_on_and_never_too_many_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "CONCURRENCY", 4)
    done: list[int] = []
    running, most = 0, 0

    async def work(item: int) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1
        done.append(item)

    async def scenario() -> None:
        await for_all([], work)
        await for_all(range(10), work)

    run(scenario)
    assert (sorted(done), most) == (list(range(10)), 4)


def test_the_first_error_ends_all_others() -> None:
    ended: list[int] = []
    begun: list[int] = []

    async def work(item: int) -> None:
        begun.append(item)
        if item == 2:
            await asyncio.sleep(0)
            raise TrainError("the second")
        try:
            await asyncio.sleep(3600)
        finally:
            ended.append(item)

    async def scenario() -> None:
        with pytest.raises(TrainError, match="the second"):
            await for_all(range(200), work)
        assert sorted([*ended, 2]) == begun == list(range(client_module.CONCURRENCY))

    run(scenario)
