import math
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pytest
import torch
from scipy import stats
from torch import Tensor
from transformers import MinPLogitsWarper, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from shard import filters
from shard.gumbel import gumbel
from shard.sampler import Chosen, SamplingRows, choose_tokens


@dataclass
class Alone:
    size: int = 1

    def all_gather(self, x: Tensor) -> Tensor:
        return x[None]


@dataclass
class Threads:
    """Ranks as threads of this process that meet at a barrier."""

    size: int
    parts: list[Tensor] = field(default_factory=list)
    local: threading.local = field(default_factory=threading.local)

    def __post_init__(self) -> None:
        self.barrier = threading.Barrier(self.size, timeout=20)
        self.parts = [torch.empty(0)] * self.size

    def all_gather(self, x: Tensor) -> Tensor:
        self.parts[self.local.rank] = x
        self.barrier.wait()
        gathered = torch.stack(self.parts)
        self.barrier.wait()
        return gathered


def _rows(
    num_rows: int,
    *,
    temperature: float | list[float] = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    position: int = 0,
    any_logprobs: bool = False,
) -> SamplingRows:
    temperatures = temperature if isinstance(temperature, list) else [temperature] * num_rows
    has_filter = top_k > 0 or top_p < 1 or min_p > 0
    return SamplingRows(
        temperature=torch.tensor(temperatures, dtype=torch.float64),
        top_k=torch.full((num_rows,), top_k),
        top_p=torch.full((num_rows,), top_p, dtype=torch.float64),
        min_p=torch.full((num_rows,), min_p, dtype=torch.float64),
        seed=torch.arange(num_rows) * 0x9E3779B9 - 5,
        position=torch.full((num_rows,), position),
        any_sampled=any(t > 0 for t in temperatures),
        filtered=torch.tensor([i for i, t in enumerate(temperatures) if t > 0]) if has_filter else None,
        any_logprobs=any_logprobs,
    )


def _choose(logits: Tensor, rows: SamplingRows) -> Chosen:
    return choose_tokens(logits, vocab_start=0, vocab_size=logits.shape[1], rows=rows, group=Alone())


def _choose_sharded(logits: Tensor, rows: SamplingRows, size: int) -> list[Chosen]:
    vocab = logits.shape[1]
    width = -(-vocab // size)
    padded = torch.nn.functional.pad(logits, (0, width * size - vocab), value=-math.inf)
    group = Threads(size)

    def rank_main(rank: int) -> Chosen:
        group.local.rank = rank
        part = padded[:, rank * width : (rank + 1) * width].contiguous()
        return choose_tokens(part, vocab_start=rank * width, vocab_size=vocab, rows=rows, group=group)

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(rank_main, range(size)))


def _logits(num_rows: int, vocab: int, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(num_rows, vocab, generator=torch.Generator().manual_seed(seed), dtype=dtype) * 3


def _warped(logits: Tensor, temperature: float, top_k: int, top_p: float, min_p: float) -> Tensor:
    """Transformers' own order: temperature, top-k, top-p, min-p."""
    ids = torch.empty(len(logits), 0, dtype=torch.int64)
    warpers: list[Callable[[Tensor, Tensor], Tensor]] = [TemperatureLogitsWarper(temperature)]
    warpers += [TopKLogitsWarper(top_k)] if top_k else []
    warpers += [TopPLogitsWarper(top_p)] if top_p < 1 else []
    warpers += [MinPLogitsWarper(min_p)] if min_p else []
    for warper in warpers:
        logits = warper(ids, logits)
    return logits


FILTERS = [
    {"top_k": 1},
    {"top_k": 4},
    {"top_k": 5000},
    {"top_p": 0.0},
    {"top_p": 0.5},
    {"top_p": 0.9},
    {"min_p": 0.05},
    {"min_p": 1.0},
    {"top_k": 6, "top_p": 0.8},
    {"top_k": 7, "min_p": 0.1},
    {"top_p": 0.9, "min_p": 0.1},
    {"top_k": 8, "top_p": 0.95, "min_p": 0.02},
]
COMBINATIONS = [
    {"temperature": t, "top_k": 0, "top_p": 1.0, "min_p": 0.0} | f for t in (0.7, 1.3) for f in [{}, *FILTERS]
]


@pytest.mark.parametrize("parameters", COMBINATIONS, ids=str)
def test_frequencies_are_those_of_the_filtered_softmax(parameters: dict) -> None:
    num_samples, num_positions = 50_000, 5
    logits = _logits(1, 10, seed=3, dtype=torch.float64) / 2
    expected = _warped(logits, **parameters).softmax(-1)[0].numpy() * num_samples
    num_rows = num_samples // num_positions
    counts = torch.zeros(10, dtype=torch.int64)
    for position in range(num_positions):
        rows = _rows(num_rows, position=position, **parameters)
        counts += torch.bincount(_choose(logits.expand(num_rows, -1), rows).token_ids, minlength=10)
    assert counts[expected == 0].sum() == 0
    likely = expected > 0
    if likely.sum() > 1:
        assert stats.chisquare(counts.numpy()[likely], expected[likely]).pvalue > 1e-4
    else:
        assert counts[likely].tolist() == [num_samples]


@pytest.mark.parametrize("parameters", [c for c in COMBINATIONS if c["temperature"] == 0.7], ids=str)
@pytest.mark.parametrize("vocab", [10, 3001])
@pytest.mark.parametrize("scale", [0.05, 1.0, 3.0], ids=["flat", "plain", "peaked"])
def test_choices_equal_noise_over_the_survivors_of_transformers_warpers(
    parameters: dict, vocab: int, scale: float
) -> None:
    logits = _logits(9, vocab, seed=4, dtype=torch.float64) * scale
    rows = _rows(9, **parameters)
    noise = gumbel(rows.seed[:, None], rows.position[:, None], torch.arange(vocab), torch.float64)
    expected = (_warped(logits, **parameters) + noise).argmax(-1)
    assert _choose(logits, rows).token_ids.tolist() == expected.tolist()


@pytest.mark.parametrize("parameters", [c for c in COMBINATIONS if c["temperature"] == 0.7][1:], ids=str)
def test_a_part_of_a_row_decides_as_the_whole_row_does(parameters: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.cat([_logits(4, 5000, seed=s) * scale for s, scale in enumerate((0.1, 1.0, 4.0))])
    # Half of the scores tie with another.
    logits = torch.cat([logits[:, :2500], logits[:, :2500]], dim=1)
    rows = _rows(12, **parameters)
    by_depth = _choose(logits, rows).token_ids
    monkeypatch.setattr(filters, "_DEPTHS", (math.inf,))
    assert torch.equal(_choose(logits, rows).token_ids, by_depth)


@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize("vocab", [3, 5, 131, 3000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_any_number_of_shards_gives_the_same_tokens_on_every_rank(size: int, vocab: int, dtype: torch.dtype) -> None:
    logits = _logits(8, vocab, dtype=dtype)
    mixed = [0.0, 0.8, 1.0, 0.0, 1.5, 0.7, 2.0, 0.3]
    for parameters in [{}, {"top_k": 4}, {"top_p": 0.8}, {"top_p": 0.9, "min_p": 0.05}]:
        for position in range(5):
            rows = _rows(8, temperature=mixed, position=position, any_logprobs=True, **parameters)
            expected = _choose(logits, rows)
            for chosen in _choose_sharded(logits, rows, size):
                assert torch.equal(chosen.token_ids, expected.token_ids)
                torch.testing.assert_close(chosen.logprobs, expected.logprobs)


def test_a_row_is_decided_alike_alone_and_in_any_batch() -> None:
    logits = _logits(11, 2000)
    for parameters in [{}, {"top_k": 20}, {"top_p": 0.9}, {"min_p": 0.02}]:
        mixed = [0.0, 0.8, 1.0, 0.0, 1.5, 0.7, 2.0, 0.3, 1.0, 1.0, 1.2]
        together = _choose(logits, _rows(11, temperature=mixed, **parameters)).token_ids
        assert len(set(together.tolist())) > 5
        for i in range(11):
            several = _rows(11, temperature=mixed, **parameters)
            one = SamplingRows(
                *(getattr(several, name)[i : i + 1] for name in ("temperature", "top_k", "top_p", "min_p")),
                several.seed[i : i + 1],
                several.position[i : i + 1],
                any_sampled=mixed[i] > 0,
                filtered=torch.tensor([0]) if several.filtered is not None and i in several.filtered else None,
                any_logprobs=False,
            )
            assert _choose(logits[i : i + 1], one).token_ids.tolist() == [int(together[i])]


@pytest.mark.parametrize("size", [1, 2, 3])
def test_equal_logits_go_to_the_lowest_id(size: int) -> None:
    for vocab in (7, 3000):
        for ties in ([2, 5], [vocab // 2, vocab - 1], [0, 1, vocab - 2]):
            logits = torch.zeros(2, vocab)
            logits[:, ties] = 5.0
            chosen = _choose(logits, _rows(2)) if size == 1 else _choose_sharded(logits, _rows(2), size)[0]
            assert chosen.token_ids.tolist() == [ties[0]] * 2


@pytest.mark.parametrize("parameters", [{"top_p": 0.5}, {"top_p": 0.5, "min_p": 1e-5}, {"top_k": 2}], ids=str)
def test_cuts_far_below_the_best_score_are_found(parameters: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    # A single id is at the top, and most of the mass in the many more than e^-8 below it; the second best is tied.
    monkeypatch.setattr(filters, "_CLASSES", 1)
    logits = torch.full((64, 20_000), -9.0, dtype=torch.float64)
    logits[:, 10_000:] -= _logits(64, 10_000, dtype=torch.float64).abs() / 9
    logits[:, 100] = 0.0
    rows = _rows(64, temperature=1.0, **parameters)
    noise = gumbel(rows.seed[:, None], rows.position[:, None], torch.arange(20_000), torch.float64)
    warped = _warped(logits, 1.0, **{"top_k": 0, "top_p": 1.0, "min_p": 0.0} | parameters)
    if "top_p" in parameters:
        # The rule among equals at the cut, where transformers follows its sort: the lowest ids, as many as it keeps.
        order = logits.sort(dim=1, descending=True, stable=True).indices
        is_kept = torch.arange(20_000) < warped.isfinite().sum(1, keepdim=True)
        warped = logits.masked_fill(~torch.zeros_like(is_kept).scatter(1, order, is_kept), -math.inf)
    chosen = _choose(logits, rows).token_ids
    assert chosen.tolist() == (warped + noise).argmax(-1).tolist()
    assert 0 < (chosen != 100).sum() < 64


def test_top_k_keeps_all_that_equal_the_kth_and_top_p_the_lowest_ids() -> None:
    logits = torch.zeros(400, 6)
    logits[:, 0] = -3.0
    tied_at_k = _choose(logits, _rows(400, temperature=1.0, top_k=2)).token_ids
    assert set(tied_at_k.tolist()) == {1, 2, 3, 4, 5}
    tied_at_p = _choose(logits, _rows(400, temperature=1.0, top_p=0.5)).token_ids
    assert set(tied_at_p.tolist()) == {1, 2, 3}
    # Two of four equal ids hold exactly one half.
    half = _choose(torch.zeros(400, 4), _rows(400, temperature=1.0, top_p=0.5)).token_ids
    assert set(half.tolist()) == {0, 1}
    equal_to_the_best = _choose(logits, _rows(400, temperature=1.0, min_p=1.0)).token_ids
    assert set(equal_to_the_best.tolist()) == {1, 2, 3, 4, 5}


def test_logprobs_are_of_the_models_own_distribution() -> None:
    logits = _logits(6, 300)
    rows = _rows(6, temperature=[0.0, 0.5, 2.0] * 2, top_k=5, any_logprobs=True)
    for chosen in [_choose(logits, rows), _choose_sharded(logits, rows, 3)[2]]:
        expected = logits.log_softmax(-1).gather(1, chosen.token_ids[:, None])[:, 0]
        torch.testing.assert_close(chosen.logprobs, expected)
        assert chosen.logprobs is not None
        assert chosen.logprobs.dtype == logits.dtype


def test_a_greedy_row_ignores_filters_seeds_and_its_sampled_neighbours() -> None:
    logits = _logits(4, 500)
    rows = _rows(4, temperature=[0.0, 1.0, 0.0, 1.0], top_k=3)
    assert _choose(logits, rows).token_ids[[0, 2]].tolist() == logits.argmax(-1)[[0, 2]].tolist()


def test_a_step_without_rows_has_no_tokens() -> None:
    chosen = _choose(torch.empty(0, 50), _rows(0))
    assert chosen.token_ids.shape == (0,)
    assert chosen.logprobs is None


@pytest.mark.parametrize("is_readable", [True, False])
@pytest.mark.parametrize("parameters", [{"top_k": 5}, {"top_p": 0.9}, {"min_p": 0.1}], ids=str)
def test_a_row_that_overflowed_gets_some_token_and_its_neighbour_its_own(
    parameters: dict, is_readable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("shard.filters", "shard.sampler"):
        monkeypatch.setattr(f"{module}.is_readable", lambda _: is_readable)
    for wrong in (math.nan, math.inf, -math.inf):
        logits = _logits(3, 500)
        rows = _rows(3, temperature=0.7, **parameters)
        expected = _choose(logits, rows).token_ids
        logits[1] = wrong
        chosen = _choose(logits, rows).token_ids
        assert chosen[[0, 2]].tolist() == expected[[0, 2]].tolist()
        assert 0 <= chosen[1] < 500
