"""Medusa heads as layers: ranks together equal one, no rank holds more than its share, and equals go by rule."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
import torch
from torch import Tensor

from shard.checkpoint import Checkpoint, CheckpointError
from shard.distributed import TPGroup
from shard.medusa.checkpoint import MedusaCheckpoint
from shard.speculation import Candidates
from tests.checkpoints import make_checkpoint
from tests.medusa_checkpoints import HeadWeights, random_heads, write_heads
from tests.shard.medusa_reference import (
    HIDDEN,
    VOCABULARY,
    assert_same,
    hidden_states,
    lm_head_of,
    load,
    reference,
)

# neither divides by the numbers of ranks
FREQUENT_TOKENS = sorted(torch.randperm(VOCABULARY, generator=torch.Generator().manual_seed(3))[:45].tolist())
NUM_HEADS, WIDTH = 3, 6
CASES = ("v1", "v1-pt", "v2", "v2 frequent", "v2 few", "vllm truncated")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("heads")
    make_checkpoint(folder / "base", num_layers=1, hidden=HIDDEN, vocab=VOCABULARY)
    make_checkpoint(folder / "tied base", num_layers=1, hidden=HIDDEN, vocab=VOCABULARY, tie_word_embeddings=True)
    own, tied = heads_of("v1"), heads_of("v2")
    write_heads(folder / "v1", own, "v1", base=None)
    write_heads(folder / "v1-pt", own, "v1-pt", base=None)
    write_heads(folder / "v2", tied, "v2", base=None)
    for name, token_ids in (("v2 frequent", FREQUENT_TOKENS), ("v2 few", FREQUENT_TOKENS[:7])):
        write_heads(folder / name, tied, "v2", base=None)
        (folder / name / "drafthouse_medusa.json").write_text(json.dumps({"token_ids": token_ids}))
    write_heads(folder / "vllm truncated", heads_of("vllm truncated"), "vllm", base=None)
    return folder


def heads_of(case: str) -> list[HeadWeights]:
    vocab = 41 if case == "vllm truncated" else VOCABULARY
    return random_heads(NUM_HEADS, 1, HIDDEN, vocab, tied=case.startswith("v2"))


def expected_of(case: str, base: Path) -> Candidates:
    lm_head = lm_head_of(base)
    token_ids = {"v2 frequent": FREQUENT_TOKENS, "v2 few": FREQUENT_TOKENS[:7]}.get(case)
    lm_head = lm_head if token_ids is None else lm_head[token_ids]
    return reference(heads_of(case), hidden_states(), WIDTH, lm_head=lm_head, token_ids=token_ids)


def run_case(root: Path, case: str, group: TPGroup) -> Candidates:
    heads = load(root / case, root / "base", group=group)
    assert heads is not None
    return heads.candidates(hidden_states(), WIDTH)


class ThreadGroup(TPGroup):
    """A rank that is a thread: real processes are what tests/test_medusa.py has."""

    def __init__(self, rank: int, shared: list[Tensor | None], barrier: Barrier) -> None:
        super().__init__(rank=rank, size=len(shared))
        self._shared = shared
        self._barrier = barrier
        self.gathered: list[tuple[int, ...]] = []

    def all_gather(self, x: Tensor) -> Tensor:
        self.gathered.append(tuple(x.shape))
        self._shared[self.rank] = x
        self._barrier.wait(60)
        everyones = torch.stack([part for part in self._shared if part is not None])
        self._barrier.wait(60)
        return everyones


@pytest.mark.parametrize("case", CASES)
def test_one_rank_gives_what_the_description_asks_for(case: str, root: Path) -> None:
    assert_same(run_case(root, case, TPGroup()), expected_of(case, root / "base"))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("size", [2, 4, 8])
def test_ranks_together_equal_one(size: int, case: str, root: Path) -> None:
    shared: list[Tensor | None] = [None] * size
    barrier = Barrier(size)
    groups = [ThreadGroup(rank, shared, barrier) for rank in range(size)]
    with ThreadPoolExecutor(size) as pool:
        found = list(pool.map(lambda group: run_case(root, case, group), groups))
    assert_same(found[0], expected_of(case, root / "base"))
    # Not nearly: a rank that disagrees in one bit may build another tree.
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))
    # Once, and of a slice only its best (value, row) pairs and one more number.
    for group in groups:
        (shape,) = group.gathered
        assert shape[:2] == (NUM_HEADS, 5)
        assert shape[2] <= 2 * WIDTH + 1


def test_each_of_four_ranks_holds_and_reads_a_quarter_of_the_projections(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows_read: list[int] = []
    read = MedusaCheckpoint.read

    def spy(self: MedusaCheckpoint, name: str, *, dim: int, start: int, stop: int) -> Tensor:
        if name.startswith("projections."):
            rows_read.append(stop - start)
        return read(self, name, dim=dim, start=start, stop=stop)

    monkeypatch.setattr(MedusaCheckpoint, "read", spy)
    share = -(-VOCABULARY // 4)
    for rank in range(4):
        heads = load(root / "v1", root / "base", group=TPGroup(rank=rank, size=4))
        assert heads is not None
        pieces = [piece for layer in heads.projections for piece in layer.pieces["weight"]]
        assert [piece.local_shape for piece in pieces] == [(share, HIDDEN)] * NUM_HEADS
        assert all(layer(hidden_states()).shape[1] == share for layer in heads.projections)
    assert max(rows_read) == share
    assert sum(rows_read) == NUM_HEADS * VOCABULARY


def test_each_of_four_ranks_copies_a_quarter_of_the_frequent_rows(root: Path) -> None:
    for rank in range(4):
        heads = load(root / "v2 frequent", root / "base", group=TPGroup(rank=rank, size=4))
        assert heads is not None
        assert heads._logits(hidden_states()).shape == (NUM_HEADS * 5, -(-len(FREQUENT_TOKENS) // 4))


def test_heads_without_projections_use_the_layer_of_the_model(root: Path) -> None:
    heads = load(root / "v2", root / "base")
    assert heads is not None
    assert not [name for name, _ in heads.named_modules() if name.startswith("projections.")]
    assert sum(block.pieces["weight"][0].local_shape[0] for blocks in heads.blocks for block in blocks) == 3 * HIDDEN


def test_a_tied_base_gives_its_embedding(root: Path) -> None:
    base = root / "tied base"
    embedding = Checkpoint(base).read("model.embed_tokens.weight", dim=0, start=0, stop=VOCABULARY).double()
    for case, token_ids in (("v2", None), ("v2 frequent", FREQUENT_TOKENS)):
        lm_head = embedding if token_ids is None else embedding[token_ids]
        heads = load(root / case, base)
        assert heads is not None
        expected = reference(heads_of(case), hidden_states(), WIDTH, lm_head=lm_head, token_ids=token_ids)
        assert_same(heads.candidates(hidden_states(), WIDTH), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", ["v1", "v2", "v2 frequent"])
def test_serving_in_fewer_bits_rounds_only(case: str, dtype: torch.dtype, root: Path) -> None:
    heads = load(root / case, root / "base", dtype=dtype)
    assert heads is not None
    found = heads.candidates(hidden_states().to(dtype), WIDTH)
    expected = expected_of(case, root / "base")
    assert found.probabilities.dtype == torch.float32
    tolerance = 1e-4 if dtype == torch.float32 else 0.1
    torch.testing.assert_close(found.probabilities, expected.probabilities, rtol=0, atol=tolerance)


def test_a_width_beyond_the_proposable_tokens_is_filled_with_impossible_ones(root: Path) -> None:
    heads = load(root / "v2 few", root / "base")
    assert heads is not None
    found = heads.candidates(hidden_states(), 10)
    assert found.token_ids.shape == (5, NUM_HEADS, 10)
    assert (found.probabilities[..., 7:] == 0).all()
    torch.testing.assert_close(found.probabilities.sum(2), torch.ones(5, NUM_HEADS))


def test_heads_say_nothing_of_a_sequence_that_overflowed(root: Path) -> None:
    heads = load(root / "v1", root / "base", group=TPGroup())
    assert heads is not None
    hidden = hidden_states()
    expected = heads.candidates(hidden, WIDTH)
    hidden[1] = torch.nan
    found = heads.candidates(hidden, WIDTH)
    assert not found.probabilities[1].any()
    assert torch.equal(found.probabilities[0], expected.probabilities[0])


def test_equal_tokens_go_to_the_lowest_id(root: Path, tmp_path: Path) -> None:
    heads = heads_of("v1")
    for head in heads:
        assert head.projection is not None
        head.projection[65:130] = head.projection[:65]
    write_heads(tmp_path, heads, "v1", base=None)
    loaded = load(tmp_path, root / "base")
    assert loaded is not None
    found = loaded.candidates(hidden_states(), 2)
    best = found.token_ids[..., 0]
    is_doubled = best < 65
    assert is_doubled.double().mean() > 0.9
    assert torch.equal(found.token_ids[..., 1][is_doubled], best[is_doubled] + 65)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read"),
        ("[]", "cannot be read"),
        ('{"acceptance": [["much"]], "probability": [[1]]}', "cannot be read"),
        ('{"acceptance": [[1.5]], "probability": [[1]]}', "no number from 0 to 1"),
        ('{"acceptance": [[1]], "probability": [[NaN]]}', "no number from 0 to 1"),
        ('{"acceptance": [[0.5, 0.1]], "probability": [[0.5]]}', "different sizes"),
        ('{"token_ids": [3, 131]}', "names token 131, but the model has 131"),
    ],
)
def test_figures_that_make_no_sense_are_an_error(content: str, message: str, root: Path, tmp_path: Path) -> None:
    write_heads(tmp_path, heads_of("v2"), "v2", base=None)
    (tmp_path / "drafthouse_medusa.json").write_text(content)
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path, root / "base")


def test_the_figures_beside_heads_are_read(root: Path, tmp_path: Path) -> None:
    write_heads(tmp_path, heads_of("v2"), "v2", base=None)
    tables = {"acceptance": [[0.5, 0.1], [0.3, 0.1]], "probability": [[0.6, 0.2], [0.4, 0.2]]}
    (tmp_path / "drafthouse_medusa.json").write_text(json.dumps(tables | {"accuracy": {"anything": 1}}))
    heads = load(tmp_path, root / "base")
    assert heads is not None
    assert heads.figures is not None
    assert (heads.figures.acceptance, heads.figures.probability) == (tables["acceptance"], tables["probability"])
    assert heads.description == "v2, 3 of 3 heads with 1 layer"
