"""Paged attention: the same tokens must come out whatever shares the step, in float64."""

import random
from pathlib import Path

import pytest
import torch
from torch import Tensor

from shard.attention_groups import Span, plan_groups
from tests.checkpoints import make_checkpoint
from tests.shard.paged import PagedModel, Part, Sequence, random_tokens

EXACT = {"rtol": 0, "atol": 1e-11}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture
def paged(folder: Path) -> PagedModel:
    return PagedModel(folder, dtype=torch.float64)


def whole(paged: PagedModel, tokens: list[int]) -> Tensor:
    return paged.prefill(Sequence(), tokens)


def test_rows_of_a_verify_span_equal_the_whole_sequence(paged: PagedModel) -> None:
    tokens = random_tokens(40)
    expected = whole(paged, tokens)
    sequence = Sequence()
    paged.prefill(sequence, tokens[:19])
    (first,) = paged.step([Part(sequence, tokens[19:25], num_kept=6)])
    (second,) = paged.step([Part(sequence, tokens[25:40], num_kept=15)])
    torch.testing.assert_close(torch.cat((first, second)), expected[19:], **EXACT)


def test_rejected_rows_leave_no_trace(paged: PagedModel) -> None:
    tokens = random_tokens(30)
    expected = whole(paged, tokens)
    sequence = Sequence()
    paged.prefill(sequence, tokens[:10])
    for position in range(10, 26, 2):
        wrong = random_tokens(4, seed=position)
        (rows,) = paged.step([Part(sequence, [*tokens[position : position + 2], *wrong], num_kept=2)])
        torch.testing.assert_close(rows[:2], expected[position : position + 2], **EXACT)


def test_a_mixed_step_equals_each_sequence_alone(paged: PagedModel) -> None:
    rng = random.Random(1)
    texts = [random_tokens(90, seed=i) for i in range(9)]
    expected = [whole(paged, text) for text in texts]
    lengths = [1, 3, 4, 8, 17, 33, 60, 0, 20]
    sequences = [Sequence() for _ in texts]
    for sequence, text, length in zip(sequences, texts, lengths, strict=True):
        if length:
            paged.prefill(sequence, text[:length])
    for _ in range(4):
        # seven step spans of different lengths in a shuffled order, then two chunks
        order = [*rng.sample(range(7), 7), 7, 8]
        parts, wanted = [], []
        for i in order:
            start, rows = len(sequences[i].token_ids), rng.randint(1, 5)
            kept = rows if i >= 7 else rng.randint(1, rows)
            parts.append(Part(sequences[i], texts[i][start : start + rows], direct=i >= 7, num_kept=kept))
            wanted.append(expected[i][start : start + rows])
        for rows_out, rows_wanted in zip(paged.step(parts), wanted, strict=True):
            torch.testing.assert_close(rows_out, rows_wanted, **EXACT)


@pytest.mark.parametrize("num_rows", [1, 4])
def test_a_uniform_batch_equals_each_sequence_alone(paged: PagedModel, num_rows: int) -> None:
    texts = [random_tokens(30, seed=i) for i in range(5)]
    expected = [whole(paged, text) for text in texts]
    sequences = [Sequence() for _ in texts]
    for sequence, text in zip(sequences, texts, strict=True):
        paged.prefill(sequence, text[:12])
    out = paged.step([Part(s, t[12 : 12 + num_rows]) for s, t in zip(sequences, texts, strict=True)])
    for rows, wanted in zip(out, expected, strict=True):
        torch.testing.assert_close(rows, wanted[12 : 12 + num_rows], **EXACT)


def test_blocks_and_workspace_left_by_others_change_nothing(paged: PagedModel) -> None:
    tokens = random_tokens(50)
    expected = whole(paged, tokens)
    paged.cache._page_tokens.fill_(1e30)
    paged.cache._steps.fill_(-1e30)
    paged.cache.workspace(100_000).fill_(1e30)
    sequence = Sequence()
    first = paged.prefill(sequence, tokens[:33], chunk=10)
    (second,) = paged.step([Part(sequence, tokens[33:36])])
    torch.testing.assert_close(torch.cat((first, second)), expected[:36], **EXACT)


def test_spans_are_grouped_by_powers_of_two_and_chunks_alone() -> None:
    lengths = [1, 2, 3, 4, 5, 8, 9, 16, 2]
    spans = [Span(1, list(range(n)), direct=False) for n in lengths]
    chunks = [Span(5, [1, 2], direct=True), Span(5, [3, 4], direct=True)]
    assert plan_groups([*spans, *chunks]) == [[0], [1, 8], [2, 3], [4, 5], [6, 7], [9], [10]]
