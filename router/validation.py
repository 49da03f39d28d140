"""From a client's message to requests the engine can run, or to the name of the field that is wrong.

Owns every rule about what a request may say. Knows protobuf messages but no RPC; starts nothing.
"""

import math
import secrets
from collections.abc import Sequence

from drafthouse.v1 import generation_pb2, sampling_pb2
from router.errors import InvalidRequest
from router.request import GenerationRequest, Limits
from router.sequence import SamplingParams
from router.tokenizer import Tokenizer

_MAX_REQUEST_ID_CHARACTERS = 128
# All sequences of a shard have room for as many as one of them wants.
_MAX_STOP_TOKENS = 64
# The text that may be the beginning of one is held back, and looked at whenever there is more.
_MAX_STOP_STRING_CHARACTERS = 1024
# Each becomes several tokens by the template, however little it says.
_MAX_CHAT_MESSAGES = 8192
# Below it logits overflow float32 when they are divided by it; clients that say 1e-5 send the float32 next to it.
_MIN_TEMPERATURE = 0.99e-5
_UINT64 = 2**64


def validate_generate(
    request: generation_pb2.GenerateRequest, *, tokenizer: Tokenizer, limits: Limits, deadline_s: float | None
) -> list[GenerationRequest]:
    """One request per choice, or InvalidRequest. `deadline_s` is a value of time.monotonic()."""
    request_id = _request_id(request.request_id)
    num_choices = request.n if request.HasField("n") else 1
    if not 1 <= num_choices <= limits.max_choices:
        raise InvalidRequest("n", f"must be between 1 and {limits.max_choices}, not {num_choices}")
    sampling = _sampling(request.sampling, limits)
    stop_strings = _stop_strings(request.stopping.stop_strings, limits)
    stop_token_ids = _stop_token_ids(request.stopping.stop_token_ids, limits)
    if not request.stopping.ignore_eos:
        stop_token_ids |= tokenizer.eos_token_ids
    prompt_token_ids = _prompt_token_ids(request, tokenizer, limits)
    max_new_tokens = _max_new_tokens(request.stopping, len(prompt_token_ids), limits)
    bound = limits.max_speculative_tokens
    return [
        GenerationRequest(
            request_id=request_id if num_choices == 1 else f"{request_id}/{index}",
            prompt_token_ids=prompt_token_ids,
            sampling=SamplingParams(
                temperature=sampling.temperature,
                top_k=sampling.top_k,
                top_p=sampling.top_p,
                min_p=sampling.min_p,
                seed=fold_seed(sampling.seed, index),
            ),
            max_new_tokens=max_new_tokens,
            stop_strings=stop_strings,
            stop_token_ids=stop_token_ids,
            num_speculative_tokens=min(request.speculate, bound) if request.HasField("speculate") else bound,
            logprobs=request.logprobs,
            deadline_s=deadline_s,
        )
        for index in range(num_choices)
    ]


def validate_tokenize(request: generation_pb2.TokenizeRequest, tokenizer: Tokenizer) -> list[int]:
    match request.WhichOneof("input"):
        case "text":
            return tokenizer.encode(request.text)
        case "chat":
            return _chat_token_ids(request.chat, tokenizer)
        case _:
            raise InvalidRequest("input", "text or chat must be given")


def fold_seed(seed: int, index: int) -> int:
    """The seed of a choice, 64 bits; the first choice has the request's own.

    The mix is the output function of SplitMix64 (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number
    generators"): a bijection for each index, so choices of one request never share a seed's stream by a small shift.
    """
    if index == 0:
        return seed
    z = (seed + index * 0x9E3779B97F4A7C15) % _UINT64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % _UINT64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % _UINT64
    return z ^ (z >> 31)


def _request_id(request_id: str) -> str:
    if not request_id:
        return secrets.token_hex(8)
    # It is written to logs as it is.
    if len(request_id) > _MAX_REQUEST_ID_CHARACTERS or not request_id.isprintable():
        raise InvalidRequest("request_id", f"must be at most {_MAX_REQUEST_ID_CHARACTERS} printable characters")
    return request_id


def _prompt_token_ids(request: generation_pb2.GenerateRequest, tokenizer: Tokenizer, limits: Limits) -> list[int]:
    field = request.WhichOneof("input")
    match field:
        case "text":
            # Some tokenizers begin every text with a special token: an empty text must not pass for that.
            token_ids = tokenizer.encode(request.text) if request.text else []
        case "chat":
            token_ids = _chat_token_ids(request.chat, tokenizer)
        case "token_ids":
            token_ids = list(request.token_ids.ids)
        case _:
            raise InvalidRequest("input", "text, chat or token_ids must be given")
    if not token_ids:
        raise InvalidRequest(field, "the prompt is empty")
    if len(token_ids) > limits.max_input_tokens:
        raise InvalidRequest(
            field, f"the prompt has {len(token_ids)} tokens; at most {limits.max_input_tokens} are possible"
        )
    # Some tokenizers have more tokens than the model has rows.
    _check_token_ids("token_ids.ids" if field == "token_ids" else field, token_ids, limits)
    return token_ids


def _chat_token_ids(chat: generation_pb2.ChatMessages, tokenizer: Tokenizer) -> list[int]:
    if not chat.messages:
        raise InvalidRequest("chat.messages", "there must be at least one message")
    if len(chat.messages) > _MAX_CHAT_MESSAGES:
        raise InvalidRequest(
            "chat.messages", f"{len(chat.messages)} were given; at most {_MAX_CHAT_MESSAGES} are possible"
        )
    return tokenizer.apply_chat_template([{"role": m.role, "content": m.content} for m in chat.messages])


def _check_token_ids(field: str, token_ids: Sequence[int], limits: Limits) -> None:
    if (highest := max(token_ids, default=0)) >= limits.vocab_size:
        raise InvalidRequest(field, f"token id {highest} is outside the vocabulary of {limits.vocab_size} tokens")


def _max_new_tokens(stopping: generation_pb2.StoppingCriteria, num_prompt_tokens: int, limits: Limits) -> int:
    room = limits.max_total_tokens - num_prompt_tokens
    if not stopping.HasField("max_new_tokens"):
        return room
    wanted = stopping.max_new_tokens
    if wanted == 0:
        raise InvalidRequest("stopping.max_new_tokens", "must be at least 1")
    if wanted > room:
        raise InvalidRequest(
            "stopping.max_new_tokens",
            f"{num_prompt_tokens} prompt tokens and {wanted} new ones are {num_prompt_tokens + wanted}; "
            f"at most {limits.max_total_tokens} are possible",
        )
    return wanted


def _stop_strings(stop_strings: Sequence[str], limits: Limits) -> tuple[str, ...]:
    field = "stopping.stop_strings"
    if len(stop_strings) > limits.max_stop_sequences:
        raise InvalidRequest(field, f"{len(stop_strings)} were given; at most {limits.max_stop_sequences} are possible")
    if "" in stop_strings:
        raise InvalidRequest(field, "an empty string cannot end a text")
    if (longest := max(map(len, stop_strings), default=0)) > _MAX_STOP_STRING_CHARACTERS:
        raise InvalidRequest(field, f"one has {longest} characters; at most {_MAX_STOP_STRING_CHARACTERS} are possible")
    return tuple(stop_strings)


def _stop_token_ids(token_ids: Sequence[int], limits: Limits) -> frozenset[int]:
    field = "stopping.stop_token_ids"
    _check_token_ids(field, token_ids, limits)
    if len(distinct := frozenset(token_ids)) > _MAX_STOP_TOKENS:
        raise InvalidRequest(field, f"{len(distinct)} were given; at most {_MAX_STOP_TOKENS} are possible")
    return distinct


def _sampling(sampling: sampling_pb2.SamplingParams, limits: Limits) -> SamplingParams:
    # A NaN fails every comparison, so each rule says what is right, not what is wrong.
    temperature = sampling.temperature
    if not (temperature == 0 or _MIN_TEMPERATURE <= temperature < math.inf):
        raise InvalidRequest(
            "sampling.temperature", f"must be 0 (greedy) or a finite number from 1e-5 on, not {temperature}"
        )
    for name in ("top_p", "min_p"):
        value = getattr(sampling, name)
        if not 0 <= value <= 1:
            raise InvalidRequest(f"sampling.{name}", f"must be between 0 and 1, not {value}")
    return SamplingParams(
        temperature=temperature,
        top_k=0 if sampling.top_k >= limits.vocab_size else sampling.top_k,
        top_p=sampling.top_p or 1.0,
        min_p=sampling.min_p,
        seed=sampling.seed if sampling.HasField("seed") else secrets.randbits(64),
    )
