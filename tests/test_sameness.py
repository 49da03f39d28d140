"""The first promise: tokens are a function of weights, prompt, parameters and seed alone.

Ours against ours, in float64, tokens equal without exemption: the reference is one shard, one sequence at a time, no
speculation, no prefix cache. Against it: 1 to 4 shards, all draft lengths mixed in one batch, batches of 1 and 16 with
mixed lengths, several chunk sizes, prefix hits and misses, forced preemption, a killed shard; greedy and sampled.
"""

import asyncio
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from router.request import GenerationRequest
from router.sequence import SamplingParams
from tests.checkpoints import make_checkpoint
from tests.engines import Service, collect, generation_request, run, service
from tests.shard_processes import ShardProcesses

VOCABULARY = 131
MAX_SPECULATE = 5
MAX_BATCH_SIZE = 16


@pytest.fixture(scope="module", params=["llama", "qwen3"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp(request.param), request.param, vocab=VOCABULARY)


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


@pytest.fixture(scope="module")
def reference(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> list[list[int]]:
    """Alone, unspeculated, uncached."""
    folder = tmp_path_factory.mktemp("reference")
    expected: list[list[int]] = []

    async def scenario() -> None:
        async with service(folder, enable_prefix_caching=False) as s:
            await s.ready(60)
            for one in REQUESTS:
                expected.append(await s.tokens(replace(one, num_speculative_tokens=0)))
            assert s.total("drafthouse_speculation_drafted_tokens_total") == 0

    with ShardProcesses(folder, checkpoint, max_batch_prefill_tokens=256):
        run(scenario, timeout_s=120)
    assert all(len(tokens) == 70 for tokens in expected)
    assert min(len(set(tokens)) for tokens in expected) >= 10
    assert len({token for tokens in expected for token in tokens}) >= 30
    return expected


async def together(s: Service) -> list[list[int]]:
    return await asyncio.gather(*(s.tokens(one) for one in REQUESTS))


@pytest.mark.parametrize(("num_ranks", "chunk"), [(1, 112), (2, 113), (3, 135), (4, 160)])
def test_any_number_of_shards_batches_chunks_and_drafts(
    checkpoint: Path, reference: list[list[int]], tmp_path: Path, num_ranks: int, chunk: int
) -> None:
    async def scenario() -> None:
        async with service(tmp_path, num_ranks=num_ranks, max_concurrent_requests=32, step_timeout_s=30) as s:
            await s.ready(90)
            # All at once, then again with every prompt in the prefix cache.
            assert await together(s) == reference
            assert await together(s) == reference
            hits = s.value("drafthouse_prefix_cache_hit_tokens_total")
            assert hits >= sum(len(one.prompt_token_ids) // 16 * 16 - 16 for one in REQUESTS) > 0
            # Drafts were right and wrong, or nothing was tested.
            drafted = s.total("drafthouse_speculation_drafted_tokens_total")
            accepted = s.total("drafthouse_speculation_accepted_tokens_total")
            assert 0 < accepted < drafted
            # Alone, with the most drafts.
            for one, expected in list(zip(REQUESTS, reference, strict=True))[::5]:
                assert await s.tokens(replace(one, num_speculative_tokens=MAX_SPECULATE)) == expected

    flags = {"speculate": MAX_SPECULATE, "max_batch_size": MAX_BATCH_SIZE, "max_batch_prefill_tokens": chunk}
    with ShardProcesses(tmp_path, checkpoint, num_ranks=num_ranks, **flags):
        run(scenario, timeout_s=240)


def test_preemption_changes_nothing(checkpoint: Path, reference: list[list[int]], tmp_path: Path) -> None:
    async def scenario() -> None:
        async with service(tmp_path, max_concurrent_requests=32) as s:
            await s.ready(60)
            assert await together(s) == reference
            assert s.engine.num_preemptions > 5

    flags = {"speculate": MAX_SPECULATE, "max_batch_size": 16, "max_batch_prefill_tokens": 112}
    # Room for one sequence of the greatest length and little more.
    with ShardProcesses(tmp_path, checkpoint, max_batch_total_tokens=320, **flags):
        run(scenario, timeout_s=120)


def test_a_killed_shard_changes_nothing(checkpoint: Path, reference: list[list[int]], tmp_path: Path) -> None:
    flags = {"speculate": MAX_SPECULATE, "max_batch_size": 16, "max_batch_prefill_tokens": 112}

    async def scenario() -> None:
        async with service(tmp_path, num_ranks=2, max_concurrent_requests=32) as s:
            with ShardProcesses(tmp_path, checkpoint, num_ranks=2, **flags) as shards:
                await s.ready(60)
                streams = asyncio.create_task(together(s))
                while s.value("drafthouse_generated_tokens_total") < 300:
                    await asyncio.sleep(0.01)
                shards.kill(1)
                while s.engine.is_ready:
                    await asyncio.sleep(0.01)
            assert not streams.done()
            with ShardProcesses(tmp_path, checkpoint, num_ranks=2, **flags):
                assert await streams == reference
                assert s.value("drafthouse_shard_restarts_total") == 1

    run(scenario, timeout_s=180)


def test_end_tokens_stop_strings_and_limits_cut_at_the_same_place(
    checkpoint: Path, reference: list[list[int]], tmp_path: Path
) -> None:
    """Each stream of the reference is ended at its 30th token in three ways, at every draft length."""

    async def scenario() -> None:
        async with service(tmp_path, max_concurrent_requests=64) as s:
            await s.ready(60)
            for one, tokens in list(zip(REQUESTS, reference, strict=True))[::3]:
                end = next(i for i in range(29, 70) if tokens[i] not in tokens[:i]) if len(set(tokens[29:])) > 1 else 0
                for k in range(MAX_SPECULATE + 1):
                    drafting = replace(one, num_speculative_tokens=k)
                    assert await s.tokens(replace(drafting, max_new_tokens=30)) == tokens[:30]
                    if end:
                        stop = frozenset({tokens[end]})
                        outputs = await collect(s.engine.generate(replace(drafting, stop_token_ids=stop)))
                        assert [t for o in outputs for t in o.token_ids] == tokens[: end + 1]

    flags = {"speculate": MAX_SPECULATE, "max_batch_size": 16, "max_batch_prefill_tokens": 112}
    with ShardProcesses(tmp_path, checkpoint, **flags):
        run(scenario, timeout_s=180)
