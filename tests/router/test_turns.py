"""Which streams say something when: what is said is all that came, and the longest waiting goes first."""

import asyncio
from collections.abc import Awaitable, Callable

from router.detokenizer import Detokenizer
from router.plan import SequenceResult
from router.sequence import FinishReason, Sequence
from router.stream import Stream
from router.turns import Turns
from tests.engines import generation_request, run
from tests.router.tiny_tokenizers import byte_level_tokenizer

TOKENIZER = byte_level_tokenizer()
A = TOKENIZER.encode("a")[1]
MANY = 100


def in_a_loop(do: Callable[[Turns], Awaitable[None]]) -> None:
    run(lambda: do(Turns()))


def new_stream() -> Stream:
    request = generation_request([1, 2])
    sequence = Sequence(1, [1, 2], 2, 1000, request.sampling)
    return Stream(request, sequence, Detokenizer(TOKENIZER, [1, 2]), arrived_s=0.0)


def bring(turns: Turns, stream: Stream) -> None:
    stream.take(SequenceResult(0, [A], [], 0, 0), None)
    turns.ask(stream)


async def said(stream: Stream) -> str:
    async with asyncio.timeout(10):
        return (await stream.next_output()).text


async def begun(turns: Turns) -> list[Stream]:
    """Many that have said their first."""
    streams = [new_stream() for _ in range(MANY)]
    for stream in streams:
        bring(turns, stream)
        await said(stream)
    return streams


def test_the_first_of_each_stream_goes_at_once() -> None:
    async def do(turns: Turns) -> None:
        streams = [new_stream() for _ in range(MANY)]
        for stream in streams:
            bring(turns, stream)
        assert all(stream.has_turn for stream in streams)

    in_a_loop(do)


def test_of_many_some_wait_and_all_get_their_turn_with_all_that_came() -> None:
    async def do(turns: Turns) -> None:
        streams = await begun(turns)
        for _ in range(3):
            for stream in streams:
                bring(turns, stream)
        num_sent = sum(stream.has_turn for stream in streams)
        assert 0 < num_sent < MANY
        # Who asked first.
        assert all(stream.has_turn for stream in streams[:num_sent])
        assert [await said(stream) for stream in streams] == ["aaa"] * MANY

    in_a_loop(do)


def test_one_stream_waits_for_nothing() -> None:
    async def do(turns: Turns) -> None:
        stream = new_stream()
        for _ in range(10):
            bring(turns, stream)
            assert stream.has_turn
            assert await said(stream) == "a"

    in_a_loop(do)


def test_a_reader_that_is_slow_gets_all_at_once_and_takes_nobodys_turn() -> None:
    async def do(turns: Turns) -> None:
        slow, other = new_stream(), new_stream()
        bring(turns, other)
        await said(other)
        for _ in range(MANY):
            bring(turns, slow)
        assert slow.has_turn
        bring(turns, other)
        assert other.has_turn
        assert await said(slow) == "a" * MANY

    in_a_loop(do)


def test_a_stream_that_ends_while_it_waits_is_passed_over() -> None:
    async def do(turns: Turns) -> None:
        streams = await begun(turns)
        for stream in streams:
            bring(turns, stream)
        waiting = [stream for stream in streams if not stream.has_turn]
        waiting[0].close(FinishReason.STOP)
        waiting[1].close(None)
        assert await said(waiting[0]) == "a"
        assert [await said(stream) for stream in waiting[2:]] == ["a"] * len(waiting[2:])
        assert not waiting[0].has_turn
        # Turns that nobody waits for are not kept.
        await asyncio.sleep(0.02)
        bring(turns, streams[-1])
        assert streams[-1].has_turn

    in_a_loop(do)
