"""What a client gets of a stream, and when."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable

import pytest

from router.detokenizer import Detokenizer
from router.errors import Unavailable
from router.plan import SequenceResult
from router.request import GenerationOutput
from router.sequence import FinishReason, Sequence
from router.stream import Stream
from tests.engines import generation_request, run
from tests.router.tiny_tokenizers import byte_level_tokenizer

TOKENIZER = byte_level_tokenizer()


def tokens(text: str) -> list[int]:
    return TOKENIZER.encode(text)[1:]


def in_a_stream(do: Callable[[Stream], Awaitable[None]], *, stop: Iterable[str] = ()) -> None:
    async def scenario() -> None:
        request = generation_request([1, 2], stop_strings=tuple(stop), logprobs=True)
        sequence = Sequence(1, [1, 2], 2, 8, request.sampling, frozenset(), 0, logprobs=True)
        await do(Stream(request, sequence, Detokenizer(TOKENIZER, [1, 2], stop), arrived_s=0.0))

    run(scenario)


def bring(stream: Stream, text: str, reason: FinishReason | None = None) -> int:
    """A result with the tokens of `text`; returns how many are kept."""
    token_ids = tokens(text)
    kept, last = stream.take(SequenceResult(0, token_ids, [-0.5 * i for i in range(len(token_ids))], 3, 1), reason)
    if last is not None:
        stream.close(last)
    return kept


def test_what_waits_together_is_one_output() -> None:
    async def do(stream: Stream) -> None:
        bring(stream, "a")
        bring(stream, "bc")
        stream.give_turn()
        first = await stream.next_output()
        assert first == GenerationOutput("abc", tokens("abc"), [0.0, 0.0, -0.5])
        bring(stream, "d")
        bring(stream, "é", FinishReason.LENGTH)
        last = await stream.next_output()
        assert (last.text, last.token_ids) == ("dé", tokens("dé"))
        assert (last.finish_reason, last.num_generated_tokens, last.num_steps) == (FinishReason.LENGTH, 6, 4)
        assert (last.num_drafted_tokens, last.num_accepted_tokens) == (12, 4)

    in_a_stream(do)


def test_a_stop_string_that_nothing_more_can_undo_ends_the_text_whatever_ended_the_tokens() -> None:
    async def do(stream: Stream) -> None:
        # Half a character.
        result = SequenceResult(0, [*tokens("a"), tokens("你")[0]], [0.0, 0.0], 0, 0)
        _, reason = stream.take(result, FinishReason.LENGTH)
        stream.close(reason)
        last = await stream.next_output()
        assert (last.text, last.finish_reason) == ("a", FinishReason.STOP)

    in_a_stream(do, stop=["�"])


def test_outputs_wait_for_their_turn() -> None:
    async def do(stream: Stream) -> None:
        bring(stream, "a")
        waiting = asyncio.ensure_future(stream.next_output())
        await asyncio.sleep(0)
        bring(stream, "b")
        await asyncio.sleep(0)
        assert not waiting.done()
        stream.give_turn()
        assert (await waiting).text == "ab"
        bring(stream, "c")
        waiting = asyncio.ensure_future(stream.next_output())
        await asyncio.sleep(0)
        assert not waiting.done()
        # The end waits for nothing.
        bring(stream, "d", FinishReason.STOP)
        assert (await waiting).text == "cd"

    in_a_stream(do)


def test_half_a_character_is_said_with_the_other_half_or_at_the_end() -> None:
    async def do(stream: Stream) -> None:
        first, second = tokens("é")
        stream.take(SequenceResult(0, [first], [], 0, 0), None)
        stream.give_turn()
        assert (await stream.next_output()).text == ""
        stream.take(SequenceResult(0, [second, first], [], 0, 0), None)
        stream.give_turn()
        assert (await stream.next_output()).text == "é"
        stream.close(FinishReason.LENGTH)
        last = await stream.next_output()
        assert (last.text, last.token_ids) == ("�", [])

    in_a_stream(do)


def test_a_stop_string_is_found_at_once_and_ends_the_text_before_it() -> None:
    async def do(stream: Stream) -> None:
        assert bring(stream, "ab") == 2
        assert stream.last is None
        assert bring(stream, "cde") == 1
        assert stream.last is FinishReason.STOP
        last = await stream.next_output()
        assert (last.text, last.token_ids, last.num_generated_tokens) == ("a", tokens("abc"), 3)
        assert last.finish_reason is FinishReason.STOP

    in_a_stream(do, stop=["bc"])


def test_an_error_comes_after_the_tokens_before_it() -> None:
    async def do(stream: Stream) -> None:
        bring(stream, "ab")
        stream.close(Unavailable("gone"))
        assert (await stream.next_output()).token_ids == tokens("ab")
        for _ in range(2):
            with pytest.raises(Unavailable):
                await stream.next_output()

    in_a_stream(do)


def test_tokens_and_logprobs_end_with_the_stop_string() -> None:
    async def do(stream: Stream) -> None:
        assert bring(stream, "abcde") == 3
        last = await stream.next_output()
        assert (last.text, last.token_ids, last.logprobs) == ("a", tokens("abc"), [0.0, -0.5, -1.0])
        assert (last.finish_reason, last.num_generated_tokens) == (FinishReason.STOP, 3)

    in_a_stream(do, stop=["bc"])
