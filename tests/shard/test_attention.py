"""Paged attention: the same tokens must come out whatever shares the step, in float64."""

import random
from pathlib import Path

import pytest
import torch
from torch import Tensor

from shard.attention import attend
from shard.attention_groups import Span, plan_groups
from shard.attention_spec import AttentionSpec
from shard.forward_batch import ForwardBatch
from shard.kv_cache import KVCache
from tests.checkpoints import make_checkpoint
from tests.shard.paged import PagedModel, Part, Sequence, path, random_tokens

EXACT = {"rtol": 0, "atol": 1e-11}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def folders(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """gemma2 has a window in every other layer, shorter than a draft path here, and a cap on every score."""
    capped = {"sliding_window": 3, "attn_logit_softcapping": 2.0, "query_pre_attn_scalar": 16}
    return {"llama": folder, "gemma2": make_checkpoint(tmp_path_factory.mktemp("gemma2"), "gemma2", **capped)}


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


def cache_of(*, num_blocks: int, block_size: int, num_kv_heads: int, head_dim: int, dtype: torch.dtype) -> KVCache:
    """Of one layer."""
    return KVCache(
        num_layers=1,
        num_blocks=num_blocks,
        block_size=block_size,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        dtype=dtype,
        device=torch.device("cpu"),
        max_step_rows=16,
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.bfloat16])
def test_what_overflowed_changes_no_other_row(dtype: torch.dtype) -> None:
    """Neither a draft those beside it, nor a sequence the one that has its blocks afterwards."""
    # Of a sequence, of the next one in its block, and of a token of that with a draft behind it.
    qkv = [torch.randn(length, 3, 16, generator=torch.Generator().manual_seed(length)) for length in (16, 10, 2)]
    outs = []
    for overflow in (0.0, torch.inf):
        cache = cache_of(num_blocks=3, block_size=16, num_kv_heads=1, head_dim=16, dtype=dtype)
        qkv[0] += overflow
        qkv[2][1] += overflow
        for rows, start, direct in zip(qkv, (0, 0, 10), (True, True, False), strict=True):
            positions = torch.arange(start, start + len(rows))
            span = Span(len(rows), [1], direct=direct)
            batch = ForwardBatch.build(token_ids=positions, positions=positions, spans=[span], cache=cache)
            out = attend(rows.to(dtype), layer=0, batch=batch, cache=cache, spec=AttentionSpec(scale=0.25))
        outs.append(out[0])
    assert torch.equal(*outs)
    assert outs[0].isfinite().all()


def random_tree(num_nodes: int, rng: random.Random) -> list[int]:
    """The parents of rows 1 to `num_nodes`."""
    return [rng.randint(0, row) for row in range(num_nodes)]


def tree_part(sequence: Sequence, root: int, num_nodes: int, rng: random.Random) -> Part:
    """A tree of random tokens, siblings among them equal at times, of which one row's path is committed."""
    parents = random_tree(num_nodes, rng)
    tokens = [root, *rng.choices(range(1, 131), k=num_nodes)]
    return Part(sequence, tokens, parents=parents, kept=path(parents, rng.randint(0, num_nodes)))


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_each_path_of_a_tree_is_a_chain_of_its_own(family: str, folders: dict[str, Path]) -> None:
    """And whatever is committed of it, the sequence goes on as if it had never been a tree, in any company."""
    paged, rng = PagedModel(folders[family], dtype=torch.float64), random.Random(3)
    sequences = [Sequence() for _ in range(4)]
    for i, sequence in enumerate(sequences):
        paged.prefill(sequence, random_tokens([2, 9, 17, 30][i], seed=i))
    prompt, chunked = random_tokens(40, seed=9), Sequence()
    for size in (5, 1, 14):
        before = [list(sequence.token_ids) for sequence in sequences]
        parts = [tree_part(s, rng.randint(1, 130), rng.randint(1, size), rng) for s in sequences[:3]]
        parts.append(Part(sequences[3], random_tokens(size, seed=size), num_kept=1))
        parts.append(Part(chunked, prompt[len(chunked.token_ids) :][:size], direct=True))
        out = paged.step(parts)
        for part, rows, text in zip(parts[:4], out, before, strict=False):
            parents = list(range(len(part.token_ids) - 1)) if part.parents is None else part.parents
            for row in range(len(part.token_ids)):
                way = path(parents, row)
                alone = whole(paged, [*text, *(part.token_ids[r] for r in way)])
                torch.testing.assert_close(rows[way], alone[len(text) :], **EXACT)
        so_far = len(chunked.token_ids)
        torch.testing.assert_close(out[4], whole(paged, prompt[:so_far])[-len(out[4]) :], **EXACT)


def test_equal_trees_need_no_padding(paged: PagedModel) -> None:
    texts = [random_tokens(12, seed=i) for i in range(3)]
    sequences = [Sequence() for _ in texts]
    for sequence, text in zip(sequences, texts, strict=True):
        paged.prefill(sequence, text)
    parents = [0, 0, 1, 1, 2]
    out = paged.step([Part(s, random_tokens(6), parents=parents, kept=[0]) for s in sequences])
    for rows, text in zip(out, texts, strict=True):
        for row in range(6):
            way = path(parents, row)
            alone = whole(paged, [*text, *(random_tokens(6)[r] for r in way)])
            torch.testing.assert_close(rows[way], alone[12:], **EXACT)


def dense(q: Tensor, keys: Tensor, values: Tensor, spec: AttentionSpec) -> Tensor:
    """Of the last rows of one sequence, q [R, heads, D] over keys and values [T, heads, D], each row's own included."""
    length = len(keys)
    query = torch.arange(length - len(q), length)[:, None]
    key = torch.arange(length)
    scores = torch.einsum("qhd,khd->hqk", q, keys) * spec.scale
    if spec.softcap:
        scores = spec.softcap * torch.tanh(scores / spec.softcap)
    visible = (key <= query) & (key > query - (spec.window or length))
    return torch.einsum("hqk,khd->qhd", scores.masked_fill(~visible, -torch.inf).softmax(-1), values)


@pytest.mark.parametrize("softcap", [None, 0.7])
@pytest.mark.parametrize("window", [None, 1, 3, 8, 1000])
@pytest.mark.parametrize("direct", [False, True])
def test_windows_and_caps_are_those_of_dense_attention(window: int | None, softcap: float | None, direct: bool) -> None:
    """Sequences of 21 and 10 tokens, of which the last 6 and 4 are the step's; a draft path leaves a window of 3."""
    spec, double = AttentionSpec(scale=0.3, window=window, softcap=softcap), torch.float64
    cache = cache_of(num_blocks=20, block_size=4, num_kv_heads=2, head_dim=8, dtype=double)
    generator = torch.Generator().manual_seed(1)
    texts = [torch.randn(length, 6 + 4, 8, generator=generator, dtype=double) for length in (21, 10)]
    tables, rows = [[5, 3, 9, 1, 7, 2], [11, 4, 20]], [6, 4]
    for text, table, num_rows in zip(texts, tables, rows, strict=True):
        slots = torch.tensor([table[p // 4] * 4 + p % 4 for p in range(len(text) - num_rows)])
        cache.write(0, cache.token_index(slots), text[:-num_rows, 6:])
    batch = ForwardBatch.build(
        token_ids=torch.zeros(10, dtype=torch.int64),
        positions=torch.tensor([*range(15, 21), *range(6, 10)]),
        spans=[Span(count, table, direct) for count, table in zip(rows, tables, strict=True)],
        cache=cache,
    )
    qkv = torch.cat([text[-num_rows:] for text, num_rows in zip(texts, rows, strict=True)])
    out = attend(qkv, layer=0, batch=batch, cache=cache, spec=spec).view(10, 6, 8)
    expected = [
        dense(text[-num_rows:, :6], *text[:, 6:].view(-1, 2, 2, 8).repeat_interleave(3, 2).unbind(1), spec)
        for text, num_rows in zip(texts, rows, strict=True)
    ]
    torch.testing.assert_close(out, torch.cat(expected), rtol=0, atol=1e-12)


@pytest.mark.parametrize("spec", [AttentionSpec(0.3), AttentionSpec(0.3, window=3, softcap=0.7)])
def test_the_compiled_kernel_attends_the_trees_that_torch_does(spec: AttentionSpec) -> None:
    """Two trees of different sizes and a chunk, in bfloat16 and, from the same numbers, in float32."""
    generator = torch.Generator().manual_seed(1)
    qkv = torch.randn(16, 6 + 4, 64, generator=generator).to(torch.bfloat16)
    committed = torch.randn(20, 4, 64, generator=generator).to(torch.bfloat16)
    parents = [[0, 0, 1, 1, 2, 3], [0, 0, 0]]
    ancestors = torch.zeros(2, 7, 7, dtype=torch.bool)
    for s, tree in enumerate(parents):
        for row in range(len(tree) + 1):
            ancestors[s, row, path(tree, row)] = True
    depths = [len(path(tree, row)) - 1 for tree in parents for row in range(len(tree) + 1)]
    out = []
    for dtype in (torch.float32, torch.bfloat16):
        cache = cache_of(num_blocks=9, block_size=4, num_kv_heads=2, head_dim=64, dtype=dtype)
        cache.write(0, cache.token_index(torch.arange(4, 24)), committed.to(dtype))
        batch = ForwardBatch.build(
            token_ids=torch.zeros(16, dtype=torch.int64),
            positions=torch.tensor([*(10 + d for d in depths[:7]), *(3 + d for d in depths[7:]), *range(5)]),
            spans=[Span(7, [1, 2, 3, 6], False), Span(4, [4, 5], False), Span(5, [7, 8], True)],
            cache=cache,
            ancestors=ancestors,
        )
        assert (batch.paged is not None) == (dtype == torch.bfloat16)
        out.append(attend(qkv.to(dtype), layer=0, batch=batch, cache=cache, spec=spec).float())
    torch.testing.assert_close(out[1], out[0], rtol=2**-7, atol=1e-2)


def test_spans_are_grouped_by_powers_of_two_and_chunks_alone() -> None:
    lengths = [1, 2, 3, 4, 5, 8, 9, 16, 2]
    spans = [Span(1, list(range(n)), direct=False) for n in lengths]
    chunks = [Span(5, [1, 2], direct=True), Span(5, [3, 4], direct=True)]
    assert plan_groups([*spans, *chunks]) == [[0], [1, 8], [2, 3], [4, 5], [6, 7], [9], [10]]
