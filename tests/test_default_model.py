"""The default model in its corners: real weights, 9 heads in 3 groups, duplicate embedding rows, bfloat16."""

import asyncio
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from launcher.logs import LogWriter
from launcher.resolve import ModelRequest, ResolvedModel, resolve
from router.request import GenerationRequest
from router.sequence import SamplingParams
from router.tokenizer import Tokenizer
from tests.engines import Service, collect, generation_request, run, service
from tests.shard_processes import ShardProcesses

PROMPTS = [
    "Write a short story about a lighthouse keeper.",
    "Repeat this line five times: the quick brown fox jumps over the lazy dog.",
    "def fibonacci(n):\n    # returns the n-th Fibonacci number\n",
]
# Greedy bfloat16 tokens must be within this of the best logit that float32 arithmetic on the same weights gives. A
# bfloat16 logit of 16 to 32 has steps of 0.125, and the layers before it add their own rounding.
BFLOAT16_EPSILON = 0.75


@pytest.fixture(scope="module")
def model() -> ResolvedModel:
    return resolve(
        ModelRequest(None, None, "bfloat16", None), LogWriter(level="info", json_output=False, stream=io.StringIO())
    )


@pytest.fixture(scope="module")
def tokenizer(model: ResolvedModel) -> Tokenizer:
    return Tokenizer.from_folder(model.path)


@pytest.fixture(scope="module")
def float32_model(model: ResolvedModel) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(model.path, dtype=torch.float32).eval()


def chat(tokenizer: Tokenizer, text: str, **settings: object) -> GenerationRequest:
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": text}])
    return generation_request(prompt, **settings)  # type: ignore[arg-type]


@contextmanager
def shards(folder: Path, model: ResolvedModel, **flags: object) -> Iterator[ShardProcesses]:
    defaults: dict[str, object] = {"speculate": 3, "max_total_tokens": 1024, "max_batch_size": 8, "threads": 1}
    with ShardProcesses(folder, model.path, **(defaults | flags)) as processes:  # type: ignore[arg-type]
        yield processes


def test_float64_tokens_do_not_depend_on_speculation_or_shards(
    model: ResolvedModel, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """Four shards pad the three groups of heads, and leave a rank with nothing but padding."""
    sampled = SamplingParams(temperature=0.8, top_p=0.95, seed=99)
    requests = [
        chat(tokenizer, text, new=10, k=k, sampling=sampling)
        for text in PROMPTS[:2]
        for k in (0, 3)
        for sampling in (SamplingParams(), sampled)
    ]
    runs: dict[int, list[list[int]]] = {}

    def serve(num_ranks: int) -> None:
        folder = tmp_path / str(num_ranks)
        folder.mkdir()

        async def scenario() -> None:
            async with service(folder, num_ranks=num_ranks, step_timeout_s=60) as s:
                await s.ready(120)
                runs[num_ranks] = await asyncio.gather(*(s.tokens(one) for one in requests))
                assert s.total("drafthouse_speculation_accepted_tokens_total") > 0

        with shards(folder, model, num_ranks=num_ranks, dtype="float64"):
            run(scenario, timeout_s=300)

    for num_ranks in (1, 4):
        serve(num_ranks)
    for text in range(2):
        greedy, drawn, greedy_speculated, drawn_speculated = runs[1][4 * text : 4 * text + 4]
        assert greedy == greedy_speculated
        assert drawn == drawn_speculated
        assert greedy != drawn
    assert runs[1] == runs[4]


def test_float32_tokens_equal_transformers(
    model: ResolvedModel, tokenizer: Tokenizer, float32_model: PreTrainedModel, tmp_path: Path
) -> None:
    requests = [chat(tokenizer, text, new=40, k=3) for text in PROMPTS]
    expected = []
    for one in requests:
        with torch.inference_mode():
            out = float32_model.generate(
                torch.tensor([one.prompt_token_ids]),
                max_new_tokens=40,
                min_new_tokens=40,
                do_sample=False,
                output_logits=True,
                return_dict_in_generate=True,
                eos_token_id=None,
                pad_token_id=0,
            )
        best = torch.cat(out.logits).topk(2).values
        margin = best[:, 0] - best[:, 1]
        # Duplicate rows of the embedding are exact ties; the lowest id wins on both sides.
        assert margin[margin > 0].min() >= 1e-3
        expected.append(out.sequences[0, len(one.prompt_token_ids) :].tolist())

    async def scenario() -> None:
        async with service(tmp_path) as s:
            await s.ready(60)
            assert await asyncio.gather(*(s.tokens(one) for one in requests)) == expected

    with shards(tmp_path, model, dtype="float32"):
        run(scenario, timeout_s=120)


async def speculates(s: Service, tokenizer: Tokenizer) -> None:
    """Text that repeats: more than 2.5 tokens per verification at K = 3."""
    counting = chat(tokenizer, "Count from 1 to 40 in words, then count again.", new=96, k=3)
    outputs = await collect(s.engine.generate(counting))
    last = outputs[-1]
    # The first step is the prompt's and has nothing to verify.
    assert (last.num_generated_tokens - 1) / (last.num_steps - 1) > 2.5


def test_bfloat16_tokens_are_near_the_best_and_speculation_accepts(
    model: ResolvedModel, tokenizer: Tokenizer, float32_model: PreTrainedModel, tmp_path: Path
) -> None:
    requests = [chat(tokenizer, text, new=64, k=k) for text in PROMPTS for k in (0, 3)]

    async def scenario() -> list[list[int]]:
        async with service(tmp_path) as s:
            await s.ready(60)
            await speculates(s, tokenizer)
            return await asyncio.gather(*(s.tokens(one) for one in requests))

    streams: list[list[int]] = []

    async def keep() -> None:
        streams.extend(await scenario())

    with shards(tmp_path, model, dtype="bfloat16"):
        run(keep, timeout_s=120)
    for one, tokens in zip(requests, streams, strict=True):
        text = torch.tensor([one.prompt_token_ids + tokens])
        with torch.inference_mode():
            logits = float32_model(text).logits[0, len(one.prompt_token_ids) - 1 : -1]
        chosen = logits.gather(1, torch.tensor(tokens)[:, None])[:, 0]
        assert (logits.amax(1) - chosen).max() <= BFLOAT16_EPSILON


def test_in_8_bits_speculation_changes_no_token(model: ResolvedModel, tokenizer: Tokenizer, tmp_path: Path) -> None:
    requests = [chat(tokenizer, text, new=64, k=k) for k in (0, 3) for text in PROMPTS]
    streams: list[list[int]] = []

    async def keep() -> None:
        async with service(tmp_path) as s:
            await s.ready(60)
            await speculates(s, tokenizer)
            streams.extend(await asyncio.gather(*(s.tokens(one) for one in requests)))

    with shards(tmp_path, model, dtype="bfloat16", quantize="int8"):
        run(keep, timeout_s=120)
    half = len(PROMPTS)
    assert streams[:half] == streams[half:]
