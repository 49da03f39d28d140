"""What a client gets of a stream's outputs, and when."""

import asyncio
import time
from collections.abc import Awaitable, Callable

import pytest

from router.detokenizer import Detokenizer
from router.errors import RequestError, Unavailable
from router.request import GenerationOutput
from router.sequence import FinishReason, Sequence
from router.stream import Stream
from tests.engines import generation_request, run
from tests.router.tiny_tokenizers import byte_level_tokenizer

SOON_S, LATER_S = 0.0, 0.2
LAST = GenerationOutput("!", [9], [], finish_reason=FinishReason.STOP, num_generated_tokens=4, num_steps=3)


def part(token_id: int) -> GenerationOutput:
    return GenerationOutput(str(token_id), [token_id], [-0.5 * token_id])


def in_a_stream(*outputs: GenerationOutput | RequestError, do: Callable[[Stream], Awaitable[None]]) -> None:
    async def scenario() -> None:
        request = generation_request([1, 2])
        sequence = Sequence(1, [1, 2], 2, 8, request.sampling, frozenset(), 0, logprobs=True)
        stream = Stream(request, sequence, Detokenizer(byte_level_tokenizer(), [1, 2], ()), arrived_s=0.0)
        for output in outputs:
            stream.outputs.put_nowait(output)
        await do(stream)

    run(scenario)


def test_outputs_that_wait_together_are_one() -> None:
    async def do(stream: Stream) -> None:
        first = await stream.next_output(lambda: SOON_S)
        assert first == GenerationOutput("123", [1, 2, 3], [-0.5, -1.0, -1.5])
        stream.outputs.put_nowait(part(4))
        stream.outputs.put_nowait(LAST)
        last = await stream.next_output(lambda: SOON_S)
        assert (last.text, last.token_ids, last.logprobs) == ("4!", [4, 9], [-2.0])
        assert (last.finish_reason, last.num_generated_tokens, last.num_steps) == (FinishReason.STOP, 4, 3)

    in_a_stream(part(1), part(2), part(3), do=do)


def test_neither_the_first_output_waits_nor_the_last_but_those_between() -> None:
    async def do(stream: Stream) -> None:
        begin_s = time.monotonic()
        await stream.next_output(lambda: 60.0)
        stream.outputs.put_nowait(part(2))
        asyncio.get_running_loop().call_later(LATER_S / 2, stream.outputs.put_nowait, part(3))
        # What comes while it waits goes with it.
        assert (await stream.next_output(lambda: LATER_S)).token_ids == [2, 3]
        assert time.monotonic() - begin_s >= LATER_S
        stream.outputs.put_nowait(LAST)
        assert await stream.next_output(lambda: 60.0) == LAST

    in_a_stream(part(1), do=do)


def test_an_error_comes_after_the_tokens_before_it() -> None:
    async def do(stream: Stream) -> None:
        assert (await stream.next_output(lambda: SOON_S)).token_ids == [1, 2]
        with pytest.raises(Unavailable):
            await stream.next_output(lambda: 60.0)

    in_a_stream(part(1), part(2), Unavailable("gone"), do=do)
