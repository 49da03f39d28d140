"""The first promise: tokens are a function of weights, prompt, parameters and seed alone.

Ours against ours, in float64, tokens equal without exemption: the reference is one shard, one sequence at a time, no
speculation, no prefix cache. Against it: 1 to 4 shards, all draft lengths mixed in one batch, batches of 1 and 16 with
mixed lengths, several chunk sizes, prefix hits and misses, forced preemption, a killed shard; greedy and sampled;
drafts by lookup, by Medusa heads that know nothing, something or all of some texts, and by both in one tree.
"""

import asyncio
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from router.request import GenerationRequest
from router.sequence import FinishReason, SamplingParams
from tests.checkpoints import make_checkpoint
from tests.engines import Service, collect, generation_request, run, service
from tests.medusa_checkpoints import HeadWeights, random_heads, write_heads
from tests.oracle_heads import RecordedModel, Text, oracle_heads, partly_right_ranks, ranked_heads
from tests.router.tiny_tokenizers import byte_level_tokenizer
from tests.shard_processes import ShardProcesses

DRAFTED = "drafthouse_speculation_drafted_tokens_total"
ACCEPTED = "drafthouse_speculation_accepted_tokens_total"

VOCABULARY = 131
HIDDEN = 72
MAX_SPECULATE = 5
MAX_BATCH_SIZE = 16
# Bounds against hanging, not expectations: four ranks share whatever cores there are.
START_LIMIT_S = 240
LIMIT_S = 600
# One window is smaller than the prompts, and the families differ in all that a draft tree meets.
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen3": {},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "gemma3_text": {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 24},
}
# Medusa heads know these requests, greedy and sampled, up to so many tokens: together fewer than the model is wide.
KNOWN_REQUESTS = (4, 5, 10)
KNOWN_TOKENS = HIDDEN // len(KNOWN_REQUESTS)


def samplings() -> Iterator[SamplingParams]:
    """Greedy every other time; between them all filters, alone and together."""
    sampled = [
        SamplingParams(temperature=0.7),
        SamplingParams(temperature=1.3, top_k=7),
        SamplingParams(temperature=0.9, top_p=0.8),
        SamplingParams(temperature=1.0, min_p=0.1),
        SamplingParams(temperature=1.5, top_k=20, top_p=0.9, min_p=0.02),
    ]
    index = 0
    while True:
        yield SamplingParams()
        yield replace(sampled[index % len(sampled)], seed=2**63 + 12345 * index)
        index += 1


def make_requests(count: int, *, new: int) -> list[GenerationRequest]:
    """Prompts of 1 to 120 tokens; half of them begin alike, and texts repeat so that there is something to look up."""
    rng = random.Random(1)
    common = [rng.randrange(3, VOCABULARY) for _ in range(40)]
    requests = []
    for index, sampling in zip(range(count), samplings(), strict=False):
        own = [rng.randrange(3, VOCABULARY) for _ in range(rng.randint(1, 40))]
        prompt = common + own if index % 4 == 1 else own * rng.randint(1, 3)
        requests.append(generation_request(prompt, new=new, k=index % (MAX_SPECULATE + 1), sampling=sampling))
    return requests


REQUESTS = make_requests(MAX_BATCH_SIZE, new=70)


@dataclass(frozen=True, slots=True)
class Base:
    """A model, what it says to REQUESTS alone, unspeculated and uncached, and folders of heads by what they know."""

    checkpoint: Path
    reference: list[list[int]]
    heads: dict[str, Path]


class Bases:
    """Made when a test first asks for it: by family."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._made: dict[str, Base] = {}

    def __getitem__(self, family: str) -> Base:
        if family not in self._made:
            folder = self._folder / family
            checkpoint = make_checkpoint(folder / "model", family, vocab=VOCABULARY, hidden=HIDDEN, **FAMILIES[family])
            reference = _reference(folder, checkpoint)
            heads = {
                knowledge: write_heads(folder / knowledge, of_it, "v1", base=None)
                for knowledge, of_it in _heads(checkpoint, reference).items()
            }
            self._made[family] = Base(checkpoint, reference, heads)
        return self._made[family]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Bases:
    return Bases(tmp_path_factory.mktemp("bases"))


def _reference(folder: Path, checkpoint: Path) -> list[list[int]]:
    expected: list[list[int]] = []

    async def scenario() -> None:
        async with service(folder, enable_prefix_caching=False, step_timeout_s=30) as s:
            await s.ready(START_LIMIT_S)
            for one in REQUESTS:
                expected.append(await s.tokens(replace(one, num_speculative_tokens=0)))
            assert s.total(DRAFTED) == 0

    with ShardProcesses(folder, checkpoint, max_batch_prefill_tokens=256):
        run(scenario, timeout_s=LIMIT_S)
    assert all(len(tokens) == 70 for tokens in expected)
    assert min(len(set(tokens)) for tokens in expected) >= 10
    assert len({token for tokens in expected for token in tokens}) >= 30
    return expected


def _heads(checkpoint: Path, reference: list[list[int]]) -> dict[str, list[HeadWeights]]:
    """Right for the first tokens of KNOWN_REQUESTS always or partly, so that trees branch; and random ones."""
    texts = [
        Text(REQUESTS[index].prompt_token_ids, reference[index][: KNOWN_TOKENS + MAX_SPECULATE])
        for index in KNOWN_REQUESTS
    ]
    lesson = RecordedModel(checkpoint).learn(texts, num_heads=MAX_SPECULATE)
    return {
        "all": oracle_heads(lesson),
        "some": ranked_heads(lesson, partly_right_ranks(lesson)),
        "nothing": random_heads(MAX_SPECULATE, 1, HIDDEN, VOCABULARY, tied=False),
    }


@dataclass(frozen=True, slots=True)
class Drafting:
    """Where drafts come from: a method, and what the heads know (None: there are none)."""

    method: str
    knowledge: str | None = None

    def flags(self, base: Base) -> dict[str, object]:
        if self.knowledge is None:
            return {"speculate": MAX_SPECULATE}
        # Every tree is as large as it may be, however unlikely its drafts are.
        return {
            "medusa_path": base.heads[self.knowledge],
            "speculation_method": self.method,
            "tree_size": 12,
            "tree_width": 4,
            "draft_min_probability": 0.0,
        }

    def check(self, s: Service) -> None:
        """Drafts of every method were right and wrong, or nothing was tested."""
        assert 0 < s.total(ACCEPTED) < s.total(DRAFTED)
        by_lookup = s.total(ACCEPTED, method="ngram") + s.total(ACCEPTED, method="ngram_and_medusa")
        by_heads = s.total(ACCEPTED, method="medusa") + s.total(ACCEPTED, method="ngram_and_medusa")
        assert (by_lookup > 0) == (self.method != "medusa")
        assert (by_heads > 0) == (self.knowledge is not None)


LOOKUP = Drafting("ngram")


async def together(s: Service) -> list[list[int]]:
    return await asyncio.gather(*(s.tokens(one) for one in REQUESTS))


@pytest.mark.parametrize(
    ("family", "num_ranks", "chunk", "drafting"),
    [
        ("llama", 1, 112, LOOKUP),
        ("llama", 2, 113, Drafting("auto", "some")),
        ("llama", 3, 135, LOOKUP),
        ("llama", 4, 160, Drafting("medusa", "all")),
        ("qwen3", 1, 113, Drafting("medusa", "some")),
        ("qwen3", 2, 160, LOOKUP),
        ("mixtral", 3, 135, Drafting("hybrid", "nothing")),
        ("gemma3_text", 1, 112, Drafting("hybrid", "all")),
        ("gemma3_text", 4, 113, Drafting("auto", "some")),
    ],
)
def test_any_number_of_shards_batches_chunks_and_drafts(
    bases: Bases, tmp_path: Path, family: str, num_ranks: int, chunk: int, drafting: Drafting
) -> None:
    base = bases[family]
    reference = base.reference

    async def scenario() -> None:
        async with service(tmp_path, num_ranks=num_ranks, max_concurrent_requests=32, step_timeout_s=30) as s:
            await s.ready(START_LIMIT_S)
            # All at once, then again with every prompt in the prefix cache.
            assert await together(s) == reference
            assert await together(s) == reference
            hits = s.value("drafthouse_prefix_cache_hit_tokens_total")
            assert hits >= sum(len(one.prompt_token_ids) // 16 * 16 - 16 for one in REQUESTS) > 0
            drafting.check(s)
            # Alone, with the most drafts.
            for one, expected in list(zip(REQUESTS, reference, strict=True))[::5]:
                assert await s.tokens(replace(one, num_speculative_tokens=MAX_SPECULATE)) == expected

    flags = drafting.flags(base) | {"max_batch_size": MAX_BATCH_SIZE, "max_batch_prefill_tokens": chunk}
    with ShardProcesses(tmp_path, base.checkpoint, num_ranks=num_ranks, **flags):
        run(scenario, timeout_s=LIMIT_S)


@pytest.mark.parametrize(("family", "drafting"), [("llama", LOOKUP), ("qwen3", Drafting("auto", "some"))])
def test_preemption_changes_nothing(bases: Bases, tmp_path: Path, family: str, drafting: Drafting) -> None:
    base = bases[family]

    async def scenario() -> None:
        async with service(tmp_path, max_concurrent_requests=32) as s:
            await s.ready(START_LIMIT_S)
            assert await together(s) == base.reference
            assert s.value("drafthouse_preemptions_total") > 5
            drafting.check(s)

    flags = drafting.flags(base) | {"max_batch_size": 16, "max_batch_prefill_tokens": 112}
    # Room for one sequence of the greatest length and little more.
    with ShardProcesses(tmp_path, base.checkpoint, max_batch_total_tokens=320, **flags):
        run(scenario, timeout_s=LIMIT_S)


@pytest.mark.parametrize(("family", "drafting"), [("llama", LOOKUP), ("gemma3_text", Drafting("auto", "some"))])
def test_a_killed_shard_changes_nothing(bases: Bases, tmp_path: Path, family: str, drafting: Drafting) -> None:
    base = bases[family]
    flags = drafting.flags(base) | {"max_batch_size": 16, "max_batch_prefill_tokens": 112}

    async def scenario() -> None:
        async with service(tmp_path, num_ranks=2, max_concurrent_requests=32) as s:
            with ShardProcesses(tmp_path, base.checkpoint, num_ranks=2, **flags) as shards:
                await s.ready(START_LIMIT_S)
                streams = asyncio.create_task(together(s))
                while s.value("drafthouse_generated_tokens_total") < 300:
                    await asyncio.sleep(0.01)
                shards.kill(1)
                while s.engine.is_ready:
                    await asyncio.sleep(0.01)
            assert not streams.done()
            with ShardProcesses(tmp_path, base.checkpoint, num_ranks=2, **flags):
                assert await streams == base.reference
                assert s.value("drafthouse_shard_restarts_total") == 1
                drafting.check(s)

    run(scenario, timeout_s=LIMIT_S)


async def cut(s: Service, one: GenerationRequest) -> tuple[list[int], str]:
    """Tokens and text of a stream that something ends before it has all it may have."""
    outputs = await collect(s.engine.generate(one))
    tokens = [token for output in outputs for token in output.token_ids]
    assert outputs[-1].finish_reason is FinishReason.STOP
    assert sum(len(output.logprobs) for output in outputs) == (len(tokens) if one.logprobs else 0)
    return tokens, "".join(output.text for output in outputs)


@pytest.mark.parametrize(("family", "drafting"), [("llama", Drafting("auto", "all")), ("qwen3", LOOKUP)])
def test_end_tokens_stop_strings_and_limits_cut_at_the_same_place(
    bases: Bases, tmp_path: Path, family: str, drafting: Drafting
) -> None:
    """Streams of the reference are ended at about their 30th token in three ways, at every draft length at once."""
    base = bases[family]
    decode = byte_level_tokenizer().decode

    async def at_every_length(s: Service, one: GenerationRequest, tokens: list[int]) -> None:
        end = next(i for i in range(29, 70) if tokens[i] not in tokens[:i]) if len(set(tokens[29:])) > 1 else 0
        # Two tokens whose text is whole, or where it was before.
        texts = (decode(tokens[i : i + 2]) for i in range(20, 60))
        string = next(text for text in texts if "\N{REPLACEMENT CHARACTER}" not in text)
        with_string = next(i for i in range(len(tokens)) if string in decode(tokens[:i]))
        said = set()
        for k in range(MAX_SPECULATE + 1):
            speculating = replace(one, num_speculative_tokens=k)
            assert await s.tokens(replace(speculating, max_new_tokens=30)) == tokens[:30]
            if end:
                stop = frozenset({tokens[end]})
                assert (await cut(s, replace(speculating, stop_token_ids=stop)))[0] == tokens[: end + 1]
            kept, text = await cut(s, replace(speculating, stop_strings=(string,), logprobs=True))
            assert kept == tokens[:with_string]
            assert string not in text
            said.add(text)
        assert len(said) == 1

    async def scenario() -> None:
        async with service(tmp_path, max_concurrent_requests=64) as s:
            await s.ready(START_LIMIT_S)
            # Among them those of which heads know what is behind the string.
            some = (0, 9, 15, *KNOWN_REQUESTS)
            await asyncio.gather(*(at_every_length(s, REQUESTS[i], base.reference[i]) for i in some))

    flags = drafting.flags(base) | {"max_batch_size": 16, "max_batch_prefill_tokens": 112}
    with ShardProcesses(tmp_path, base.checkpoint, **flags):
        run(scenario, timeout_s=LIMIT_S)
