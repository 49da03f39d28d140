"""Medusa heads in real shard processes, with heads that know what the model is going to say (tests/oracle_heads.py).

Heads that are always right make every step yield exactly K + 1 tokens, whatever the family, the format or the number
of shards: one place too early or too late, a bias dropped, a slice exchanged, and almost nothing is accepted.
"""

import asyncio
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.checkpoints import make_checkpoint
from tests.engines import Service, collect, generation_request, run, service
from tests.medusa_checkpoints import HeadWeights, write_full_model, write_heads
from tests.oracle_heads import (
    NOT_RANKED,
    Lesson,
    RecordedModel,
    Text,
    oracle_heads,
    partly_right_ranks,
    ranked_heads,
    without_bias,
)
from tests.shard_processes import ShardProcesses

DRAFTED = "drafthouse_speculation_drafted_tokens_total"
ACCEPTED = "drafthouse_speculation_accepted_tokens_total"

# Bounds against hanging, not expectations: four ranks share whatever cores there are.
START_LIMIT_S = 240
LIMIT_S = 600

VOCABULARY = 131
NUM_HEADS = 3
# One from the prefill and eight full steps.
NEW = 1 + 8 * (NUM_HEADS + 1)
FAMILIES: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": 24},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "gemma": {"tie_word_embeddings": True},
}


@dataclass(frozen=True, slots=True)
class Known:
    """A base whose greedy texts are known, and the lesson for heads about them."""

    checkpoint: Path
    texts: list[Text]
    lesson: Lesson


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> "KnownBases":
    return KnownBases(tmp_path_factory.mktemp("bases"))


class KnownBases:
    """Made when first asked for: by family."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._made: dict[str, Known] = {}

    def __getitem__(self, family: str) -> Known:
        if family not in self._made:
            checkpoint = make_checkpoint(self._folder / family, family, vocab=VOCABULARY, **FAMILIES[family])
            model = RecordedModel(checkpoint)
            texts = [model.say(prompt, new=NEW + NUM_HEADS) for prompt in _prompts()]
            assert all(len(set(text.token_ids)) > 20 for text in texts)
            self._made[family] = Known(checkpoint, texts, model.learn(texts, num_heads=NUM_HEADS))
        return self._made[family]


def _prompts() -> list[list[int]]:
    rng = random.Random(3)
    return [[rng.randrange(3, VOCABULARY) for _ in range(length)] for length in (12, 37)]


@dataclass(frozen=True, slots=True)
class Told:
    """What a stream was: its tokens and the statistics of its end."""

    token_ids: list[int]
    num_steps: int
    num_drafted: int
    num_accepted: int


async def tell(s: Service, text: Text, *, new: int, k: int) -> Told:
    outputs = await collect(s.engine.generate(generation_request(text.prompt, new=new, k=k)))
    last = outputs[-1]
    token_ids = [token for output in outputs for token in output.token_ids]
    assert token_ids == text.token_ids[:new]
    return Told(token_ids, last.num_steps, last.num_drafted_tokens, last.num_accepted_tokens)


def steps(new: int, k: int) -> int:
    """One for the prompt, and the rest with K right drafts each."""
    return 1 - (1 - new) // (k + 1)


def serve(checkpoint: Path, heads: Path | None, **flags: object) -> dict[str, Any]:
    """Flags that check what heads say however unsure they are."""
    given = {"medusa_path": heads, "speculation_method": "medusa", "draft_min_probability": 0.0, "max_batch_size": 8}
    return given | flags | {"checkpoint": checkpoint}


@pytest.mark.parametrize(
    ("family", "num_ranks", "flavour", "method"),
    [
        ("mistral", 1, "v1", "medusa"),
        ("mistral", 2, "full", "auto"),
        ("mistral", 4, "v2", "medusa"),
        ("mixtral", 1, "vllm", "auto"),
        ("mixtral", 2, "v2", "medusa"),
        ("mixtral", 4, "v1", "medusa"),
        ("gemma", 1, "v2", "hybrid"),
        ("gemma", 2, "v1-pt", "medusa"),
        ("gemma", 4, "full", "medusa"),
    ],
)
def test_heads_that_are_right_give_k_plus_one_tokens_in_every_step(
    known: KnownBases, family: str, num_ranks: int, flavour: str, method: str, tmp_path: Path
) -> None:
    base = known[family]
    heads = oracle_heads(base.lesson, tied=flavour == "v2")
    checkpoint, folder = base.checkpoint, None
    if flavour == "full":
        checkpoint = write_full_model(tmp_path / "full", base.checkpoint, heads)
    else:
        folder = write_heads(tmp_path / "heads", heads, flavour, base=str(base.checkpoint))

    async def scenario() -> None:
        async with service(tmp_path, num_ranks=num_ranks, step_timeout_s=60) as s:
            await s.ready(START_LIMIT_S)
            assert s.engine.limits().max_speculative_tokens == NUM_HEADS
            first, second = base.texts
            # Each depth in one batch, and off.
            told = await asyncio.gather(
                *(tell(s, first, new=NEW, k=k) for k in range(NUM_HEADS + 1)), tell(s, second, new=NEW, k=NUM_HEADS)
            )
            assert [one.num_steps for one in told] == [steps(NEW, k) for k in (0, 1, 2, 3, 3)]
            # The last step of a stream needs fewer where K + 1 does not divide what is left.
            assert [one.num_accepted for one in told] == [NEW - one.num_steps for one in told]
            by_position = [0] * NUM_HEADS
            for k in (1, 2, 3, 3):
                for position in range(k):
                    by_position[position] += (NEW - 1 - position + k - 1) // (k + 1)
            for position, expected in enumerate(by_position, 1):
                assert s.total(ACCEPTED, position=str(position)) == expected
                assert s.total(ACCEPTED, position=str(position), method="ngram") == 0
                if method == "medusa":
                    assert s.value(ACCEPTED, position=str(position), method="medusa") == expected
            assert s.total(DRAFTED) >= s.total(ACCEPTED) == sum(by_position)
            if method == "medusa":
                assert s.total(DRAFTED, method="medusa") == s.total(DRAFTED)

    flags = serve(checkpoint, folder, speculation_method=method)
    with ShardProcesses(tmp_path, num_ranks=num_ranks, **flags):
        run(scenario, timeout_s=LIMIT_S)


def test_a_chain_of_right_heads_checks_nothing_in_vain(known: KnownBases, tmp_path: Path) -> None:
    base = known["mistral"]
    folder = write_heads(tmp_path / "heads", oracle_heads(base.lesson), "vllm-prefixed", base=None)

    async def scenario() -> None:
        async with service(tmp_path, step_timeout_s=60) as s:
            await s.ready(START_LIMIT_S)
            for text in base.texts:
                told = await tell(s, text, new=NEW, k=NUM_HEADS)
                assert told.num_steps == steps(NEW, NUM_HEADS)
                assert told.num_drafted == told.num_accepted == NEW - told.num_steps

    flags = serve(base.checkpoint, folder, tree_width=1, tree_size=NUM_HEADS)
    with ShardProcesses(tmp_path, **flags):
        run(scenario, timeout_s=LIMIT_S)


def test_speculate_takes_the_first_heads(known: KnownBases, tmp_path: Path) -> None:
    base = known["mistral"]
    folder = write_heads(tmp_path / "heads", oracle_heads(base.lesson), "v1", base=None)

    async def scenario() -> None:
        async with service(tmp_path, step_timeout_s=60) as s:
            await s.ready(START_LIMIT_S)
            assert s.engine.limits().max_speculative_tokens == 2
            told = await tell(s, base.texts[0], new=31, k=2)
            assert told.num_steps == steps(31, 2) == 11
            assert [s.value(ACCEPTED, method="medusa", position=p) for p in ("1", "2")] == [10, 10]
            assert s.total(DRAFTED, position="3") == 0

    with ShardProcesses(tmp_path, **serve(base.checkpoint, folder, speculate=2)):
        run(scenario, timeout_s=LIMIT_S)


def _shifted(heads: list[HeadWeights], lesson: Lesson) -> list[HeadWeights]:
    """Each head in the place of the one before it, so that all guess a token too far."""
    return heads[1:]


def _unbiased(heads: list[HeadWeights], lesson: Lesson) -> list[HeadWeights]:
    return without_bias(heads)


@pytest.mark.parametrize("spoil", [_shifted, _unbiased])
def test_heads_a_place_off_or_without_their_bias_are_noticed(known: KnownBases, spoil: Any, tmp_path: Path) -> None:
    base = known["mistral"]
    heads = spoil(oracle_heads(base.lesson), base.lesson)
    folder = write_heads(tmp_path / "heads", heads, "v1", base=None)

    async def scenario() -> None:
        async with service(tmp_path, step_timeout_s=60) as s:
            await s.ready(START_LIMIT_S)
            for text in base.texts:
                told = await tell(s, text, new=NEW, k=len(heads))
                assert told.num_accepted < 0.25 * told.num_drafted
                assert told.num_steps > 0.7 * NEW

    with ShardProcesses(tmp_path, **serve(base.checkpoint, folder, tree_width=1)):
        run(scenario, timeout_s=LIMIT_S)


def _simulate(ranks: torch.Tensor, *, width: int, k: int) -> tuple[int, int]:
    """Steps and accepted drafts of a text if every draft of rank < `width` at each of K places is checked.

    `ranks` [n, heads] are those of the right tokens after each position.
    """
    num_tokens, num_steps, accepted = 1, 1, 0
    while num_tokens < NEW:
        right = 0
        # Heads look from the position that yielded the last token.
        while right < min(k, NEW - num_tokens - 1) and int(ranks[num_tokens - 1, right]) < width:
            right += 1
        num_tokens += right + 1
        accepted += right
        num_steps += 1
    return num_steps, accepted


def test_a_tree_accepts_what_a_chain_misses(known: KnownBases, tmp_path: Path) -> None:
    """A tree that holds each of four tokens at each of two places accepts all that lies in it; a chain the first."""
    base = known["mistral"]
    ranks = partly_right_ranks(base.lesson)
    folder = write_heads(tmp_path / "heads", ranked_heads(base.lesson, ranks), "v1", base=None)
    num_accepted = {}
    for width, size in ((4, 4 + 16), (1, 2)):
        expected = [_simulate(ranks[start : start + NEW], width=width, k=2) for start in (0, NEW)]

        async def scenario(expected: list[tuple[int, int]] = expected, width: int = width) -> None:
            async with service(tmp_path, step_timeout_s=60) as s:
                await s.ready(START_LIMIT_S)
                told = await asyncio.gather(*(tell(s, text, new=NEW, k=2) for text in base.texts))
                assert [(one.num_steps, one.num_accepted) for one in told] == expected
                num_accepted[width] = sum(one.num_accepted for one in told)

        with ShardProcesses(tmp_path, **serve(base.checkpoint, folder, speculate=2, tree_width=width, tree_size=size)):
            run(scenario, timeout_s=LIMIT_S)
    assert width < NOT_RANKED
    assert num_accepted[4] > 1.5 * num_accepted[1] > 0
