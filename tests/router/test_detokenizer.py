"""The reference is decoding everything at once; see `whole_text` for what a prompt takes off its front."""

import os
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.detokenizer import Detokenizer
from router.tokenizer import Tokenizer
from tests.router import tiny_tokenizers

TOKENIZERS = {
    "byte_level": Tokenizer(tiny_tokenizers.byte_level()),
    "sentencepiece": Tokenizer(tiny_tokenizers.sentencepiece()),
    "metaspace": Tokenizer(tiny_tokenizers.metaspace()),
}
# A few ids beyond the vocabulary: models pad their embedding, and may emit such a row.
NUM_IDS = {"byte_level": 270, "sentencepiece": 275, "metaspace": 9}
LETTERS = "ab é你好👩‍👩‍👧�!"


def whole_text(tokenizer: Tokenizer, prompt: Sequence[int], token_ids: Sequence[int]) -> str:
    before, both = tokenizer.decode(prompt), tokenizer.decode([*prompt, *token_ids])
    return both[len(os.path.commonprefix([before, both])) :]  # noqa: RUF071


def run(
    tokenizer: Tokenizer, prompt: Sequence[int], pushes: Sequence[Sequence[int]], stop_strings: Sequence[str] = ()
) -> tuple[str, int, bool]:
    """Text, tokens kept, stopped."""
    detokenizer = Detokenizer(tokenizer, prompt, stop_strings)
    text, num_tokens = "", 0
    for push in pushes:
        result = detokenizer.push(push)
        text += result.text
        num_tokens += result.num_tokens
        if detokenizer.has_stopped:
            assert detokenizer.flush() == ""
            return text, num_tokens, True
        assert result.num_tokens == len(push)
    return text + detokenizer.flush(), num_tokens, False


def cut(token_ids: Sequence[int], sizes: Sequence[int]) -> list[Sequence[int]]:
    pushes, start = [], 0
    for size in sizes:
        pushes.append(token_ids[start : start + size])
        start += size
    return [*pushes, token_ids[start:]]


@st.composite
def streams(draw: st.DrawFn) -> tuple[Tokenizer, list[int], list[int], list[Sequence[int]]]:
    name = draw(st.sampled_from(sorted(TOKENIZERS)))
    tokenizer = TOKENIZERS[name]
    some_text = st.text(LETTERS, max_size=12).map(tokenizer.encode)
    some_ids = st.lists(st.integers(0, NUM_IDS[name] - 1), max_size=40)
    prompt = draw(some_text | some_ids)
    token_ids = draw(st.lists(some_text | some_ids, max_size=3).map(lambda parts: [t for part in parts for t in part]))
    sizes = draw(st.lists(st.integers(0, 5), max_size=60))
    return tokenizer, prompt, token_ids, cut(token_ids, sizes)


@settings(max_examples=400)
@given(streams())
def test_the_pieces_make_the_text_that_decoding_at_once_makes(
    stream: tuple[Tokenizer, list[int], list[int], list[Sequence[int]]],
) -> None:
    tokenizer, prompt, token_ids, pushes = stream
    assert run(tokenizer, prompt, pushes) == (whole_text(tokenizer, prompt, token_ids), len(token_ids), False)


@settings(max_examples=400)
@given(streams(), st.lists(st.text(LETTERS.replace("�", ""), min_size=1, max_size=3), min_size=1, max_size=3))
def test_a_stop_string_ends_the_text_at_the_same_place_whatever_the_pushes(
    stream: tuple[Tokenizer, list[int], list[int], list[Sequence[int]]], stop_strings: list[str]
) -> None:
    tokenizer, prompt, token_ids, pushes = stream
    expected = whole_text(tokenizer, prompt, token_ids), len(token_ids), False
    for num_tokens in range(1, len(token_ids) + 1):
        text = whole_text(tokenizer, prompt, token_ids[:num_tokens])
        # Character by character: the first stop string that is complete, at its earliest beginning.
        ends = (end for end in range(len(text) + 1) if any(text[:end].endswith(stop) for stop in stop_strings))
        if (end := next(ends, None)) is not None:
            length = max(len(stop) for stop in stop_strings if text[:end].endswith(stop))
            expected = text[: end - length], num_tokens, True
            break
    result = run(tokenizer, prompt, pushes, stop_strings)
    assert result == expected
    assert run(tokenizer, prompt, [[token_id] for token_id in token_ids], stop_strings) == result


def test_an_incomplete_character_is_held_back_and_the_text_before_it_is_not() -> None:
    tokenizer = TOKENIZERS["byte_level"]
    first, *rest = tokenizer.encode("你")[1:]
    detokenizer = Detokenizer(tokenizer, [])
    assert detokenizer.push([*tokenizer.encode("hi")[1:], first]).text == "hi"
    assert detokenizer.push(rest).text == "你"


def test_half_a_character_at_the_end_appears_when_flushed() -> None:
    tokenizer = TOKENIZERS["byte_level"]
    detokenizer = Detokenizer(tokenizer, [])
    assert detokenizer.push(tokenizer.encode("你")[1:-1]).text == ""
    assert detokenizer.flush() == "�"


def test_a_possible_stop_string_is_held_back_until_it_cannot_be_one() -> None:
    tokenizer = TOKENIZERS["byte_level"]
    detokenizer = Detokenizer(tokenizer, [], ["###"])
    encode = lambda text: tokenizer.encode(text)[1:]  # noqa: E731
    assert detokenizer.push(encode("a##")).text == "a"
    assert detokenizer.push(encode("b#")).text == "##b"
    assert detokenizer.flush() == "#"


def test_tokens_are_kept_through_the_one_that_completed_the_stop_string() -> None:
    tokenizer = TOKENIZERS["byte_level"]
    detokenizer = Detokenizer(tokenizer, tokenizer.encode("x"), ["lo w"])
    result = detokenizer.push(tokenizer.encode("hello w!!")[1:])
    assert (result.text, result.num_tokens, detokenizer.has_stopped) == ("hel", 2, True)


def test_the_space_before_the_first_word_belongs_to_the_text_after_a_prompt_and_not_without_one() -> None:
    tokenizer = TOKENIZERS["sentencepiece"]
    ids = tokenizer.encode("a")
    assert Detokenizer(tokenizer, tokenizer.encode("a")).push(ids).text == " a"
    assert Detokenizer(tokenizer, []).push(ids).text == "a"


@pytest.mark.parametrize("name", sorted(TOKENIZERS))
def test_the_window_that_is_decoded_does_not_grow_with_the_text(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = TOKENIZERS[name]
    num_decoded = 0
    decode = tokenizer.decode

    def counting_decode(token_ids: Sequence[int]) -> str:
        nonlocal num_decoded
        num_decoded += len(token_ids)
        return decode(token_ids)

    monkeypatch.setattr(tokenizer, "decode", counting_decode)
    for token_ids in ([5] * 1000, [200] * 1000, tokenizer.encode("hello wa " * 100)):
        num_decoded = 0
        run(tokenizer, token_ids, [[t] for t in token_ids], ["stop"])
        assert num_decoded < 24 * len(token_ids)


@pytest.mark.parametrize(
    ("stop_strings", "text"),
    [(["o", "llo"], "he"), (["llo", "o"], "he"), (["llo", "e"], "h"), (["hellox", "lo"], "hel")],
)
def test_the_stop_string_that_is_complete_first_wins_and_of_two_the_longer(stop_strings: list[str], text: str) -> None:
    tokenizer = TOKENIZERS["byte_level"]
    detokenizer = Detokenizer(tokenizer, [], stop_strings)
    assert detokenizer.push(tokenizer.encode("hello")[1:]).text == text


def test_a_byte_that_completes_a_stop_string_is_not_waited_behind() -> None:
    """Bytes of a character are said when it is whole, which a newline is at once."""
    tokenizer = TOKENIZERS["sentencepiece"]
    *hello, newline = tokenizer.encode("hello\n")
    assert tokenizer.token(newline) == "<0x0A>"
    for behind in ([], hello, [newline] * 20):
        text, num_tokens, stopped = run(tokenizer, [], [[*hello, newline, *behind]], ["\n"])
        assert (text.strip(), num_tokens, stopped) == ("hello", len(hello) + 1, True)
