from dataclasses import replace
from typing import Any

import pytest

from drafthouse.v1 import generation_pb2
from router.errors import InvalidRequest
from router.request import Limits
from router.tokenizer import Tokenizer
from router.validation import fold_seed, validate_generate, validate_tokenize
from tests.router.tiny_tokenizers import byte_level

TOKENIZER = Tokenizer(byte_level(), eos_token_ids=frozenset({264}))
LIMITS = Limits(max_total_tokens=20, max_input_tokens=16, max_speculative_tokens=3, vocab_size=300)


def validate(**fields: Any) -> list[Any]:
    message = generation_pb2.GenerateRequest(**({"text": "abc"} | fields))
    return validate_generate(message, tokenizer=TOKENIZER, limits=LIMITS, deadline_s=5.0)


def test_a_bare_request_gets_every_default() -> None:
    (request,) = validate()
    assert request.prompt_token_ids == TOKENIZER.encode("abc")
    assert request.max_new_tokens == 20 - 4
    assert (request.sampling.temperature, request.sampling.top_k, request.sampling.top_p) == (0, 0, 1)
    assert (request.stop_token_ids, request.stop_strings) == ({264}, ())
    assert (request.num_speculative_tokens, request.logprobs, request.deadline_s) == (3, False, 5.0)
    assert request.request_id
    assert validate()[0].request_id != request.request_id
    assert validate()[0].sampling.seed != request.sampling.seed


def test_every_field_reaches_the_engine() -> None:
    (request,) = validate(
        token_ids={"ids": [1, 2]},
        request_id="me",
        sampling={"temperature": 0.5, "top_k": 7, "top_p": 0.25, "min_p": 0.125, "seed": 2**64 - 1},
        stopping={"max_new_tokens": 18, "stop_strings": ["a", "b"], "stop_token_ids": [9], "ignore_eos": True},
        speculate=1,
        logprobs=True,
    )
    sampling = request.sampling
    assert (request.request_id, request.prompt_token_ids, request.max_new_tokens) == ("me", [1, 2], 18)
    assert (sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p) == (0.5, 7, 0.25, 0.125)
    assert sampling.seed == 2**64 - 1
    assert (request.stop_strings, request.stop_token_ids) == (("a", "b"), {9})
    assert (request.num_speculative_tokens, request.logprobs) == (1, True)


def test_what_exceeds_a_bound_without_changing_the_meaning_is_lowered() -> None:
    (request,) = validate(speculate=50, sampling={"temperature": 1, "top_k": 10_000})
    assert (request.num_speculative_tokens, request.sampling.top_k) == (3, 0)
    assert validate(speculate=0)[0].num_speculative_tokens == 0


def test_choices_differ_in_seed_and_id_alone_and_the_first_has_the_request_s_seed() -> None:
    requests = validate(n=8, request_id="me", sampling={"temperature": 1, "seed": 5})
    seeds = [request.sampling.seed for request in requests]
    assert seeds[0] == 5
    assert len(set(seeds)) == 8
    assert [request.request_id for request in requests] == [f"me/{i}" for i in range(8)]
    assert seeds == [r.sampling.seed for r in validate(n=8, sampling={"temperature": 1, "seed": 5})]
    # The choices of neighbouring seeds share nothing.
    neighbours = [r.sampling.seed for r in validate(n=8, sampling={"temperature": 1, "seed": 6})]
    assert not set(seeds) & set(neighbours)


def test_the_seeds_of_choices_are_those_of_splitmix64() -> None:
    # First outputs of the generator started at 0 and at 1234567, as published with reference implementations.
    assert [fold_seed(0, i) for i in (1, 2)] == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4]
    assert [fold_seed(1234567, i) for i in (1, 2)] == [6457827717110365317, 3203168211198807973]


WRONG: list[tuple[dict[str, Any], str, str]] = [
    ({"text": ""}, "text", "empty"),
    ({"token_ids": {}}, "token_ids", "empty"),
    ({"chat": {}}, "chat.messages", "at least one"),
    ({"chat": {"messages": [{"role": "user", "content": ""}] * 8193}}, "chat.messages", "at most 8192 are possible"),
    ({"chat": {"messages": [{"role": "user", "content": "x"}]}}, "chat", "no chat template"),
    ({"text": "a" * 16}, "text", "17 tokens; at most 16"),
    ({"token_ids": {"ids": [1, 300]}}, "token_ids.ids", "300 is outside .* 300"),
    ({"sampling": {"temperature": -0.5}}, "sampling.temperature", "-0.5"),
    ({"sampling": {"temperature": 0.9e-5}}, "sampling.temperature", "from 1e-5 on"),
    ({"stopping": {"stop_token_ids": list(range(65))}}, "stopping.stop_token_ids", "65 were given; at most 64"),
    ({"sampling": {"temperature": float("nan")}}, "sampling.temperature", "nan"),
    ({"sampling": {"temperature": float("inf")}}, "sampling.temperature", "inf"),
    ({"sampling": {"temperature": 1e-30}}, "sampling.temperature", "greedy"),
    ({"sampling": {"top_p": 1.5}}, "sampling.top_p", "1.5"),
    ({"sampling": {"top_p": float("nan")}}, "sampling.top_p", "nan"),
    ({"sampling": {"min_p": -1}}, "sampling.min_p", "-1"),
    ({"stopping": {"max_new_tokens": 0}}, "stopping.max_new_tokens", "at least 1"),
    ({"stopping": {"max_new_tokens": 17}}, "stopping.max_new_tokens", "4 prompt tokens and 17 new ones are 21; .* 20"),
    ({"stopping": {"stop_strings": ["x", ""]}}, "stopping.stop_strings", "empty"),
    ({"stopping": {"stop_strings": ["x", "-" * 1025]}}, "stopping.stop_strings", "1025 characters; at most 1024"),
    ({"stopping": {"stop_strings": list("abcde")}}, "stopping.stop_strings", "5 were given; at most 4"),
    ({"stopping": {"stop_token_ids": [4000]}}, "stopping.stop_token_ids", "4000"),
    ({"n": 0}, "n", "between 1 and 8"),
    ({"n": 9}, "n", "between 1 and 8"),
    ({"request_id": "a\nb"}, "request_id", "printable"),
    ({"request_id": "a" * 129}, "request_id", "128"),
]


@pytest.mark.parametrize(("fields", "field", "reason"), WRONG)
def test_a_wrong_field_is_named(fields: dict[str, Any], field: str, reason: str) -> None:
    with pytest.raises(InvalidRequest, match=reason) as caught:
        validate(**fields)
    assert caught.value.field == field


def test_a_text_of_tokens_that_the_model_has_no_rows_for_is_refused() -> None:
    """Tokenizers may know more of them."""
    limits = replace(LIMITS, vocab_size=50)
    for fields in ({"text": "hello"}, {"token_ids": {"ids": [60]}}):
        request = generation_pb2.GenerateRequest(**fields)
        with pytest.raises(InvalidRequest, match="outside the vocabulary of 50 tokens"):
            validate_generate(request, tokenizer=TOKENIZER, limits=limits, deadline_s=None)


def test_an_input_is_required() -> None:
    with pytest.raises(InvalidRequest, match="must be given"):
        validate_generate(generation_pb2.GenerateRequest(), tokenizer=TOKENIZER, limits=LIMITS, deadline_s=None)
    with pytest.raises(InvalidRequest, match="must be given"):
        validate_tokenize(generation_pb2.TokenizeRequest(), TOKENIZER)


def test_a_chat_of_too_many_messages_is_not_tokenized_either() -> None:
    chat = generation_pb2.ChatMessages(messages=[generation_pb2.ChatMessage()] * 8193)
    with pytest.raises(InvalidRequest, match="8193 were given"):
        validate_tokenize(generation_pb2.TokenizeRequest(chat=chat), TOKENIZER)


def test_a_prompt_at_the_limit_and_a_total_at_the_limit_are_served() -> None:
    assert validate(text="a" * 15)[0].max_new_tokens == 4
    assert validate(stopping={"max_new_tokens": 16})[0].max_new_tokens == 16
