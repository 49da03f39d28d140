"""The best of wide rows, compiled and by torch's operations, against a stable sort."""

from contextlib import nullcontext
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shard import sampler
from shard.cpu.best import BestKernels, best_kernels
from shard.medusa import best as best_module
from shard.medusa.best import best_of
from shard.sampler import first_max


@pytest.fixture(scope="module")
def kernels() -> BestKernels:
    found = best_kernels()
    assert found is not None
    return found


@given(
    values=st.lists(st.sampled_from([-torch.inf, -2.0, 0.0, 1.0, 1.5]), min_size=1, max_size=600),
    num_rows=st.integers(1, 3),
    num_unused=st.integers(0, 3),
)
def test_the_first_of_the_greatest_is_found(values: list[float], num_rows: int, num_unused: int) -> None:
    # Rows of a wider tensor, as the logits of a padded vocabulary are.
    wide = torch.full((num_rows, len(values) + num_unused), 9.0)
    scores = wide[:, : len(values)]
    for row in range(num_rows):
        scores[row] = torch.tensor(values).roll(row)
    best, places = first_max(scores)
    with mock.patch.object(sampler, "best_kernels", return_value=None):
        expected = first_max(scores.contiguous())
    assert torch.equal(best, expected[0])
    assert torch.equal(places, expected[1])


def test_a_whole_vocabulary_of_large_negative_scores(kernels: BestKernels) -> None:
    scores = -1e30 - torch.rand(4, 49152, generator=torch.Generator().manual_seed(0)) * 1e30
    scores[2] = -torch.inf
    assert torch.equal(kernels.first_max(scores)[1], scores.argmax(1))


@pytest.mark.parametrize("at", [0, 1, 255, 256, 300, 998])
def test_what_is_no_number_hides_nothing(at: int, kernels: BestKernels) -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(3, 1000, generator=generator)
    scores[:, at] = torch.nan
    scores[1, : at + 1] = torch.nan
    without = scores.nan_to_num(nan=-torch.inf)
    best, places = kernels.first_max(scores)
    assert torch.equal(best, without.amax(1))
    assert torch.equal(places, without.argmax(1))
    columns, values, _ = kernels.best(scores, 4)
    ordered = without.sort(dim=1, descending=True, stable=True)
    assert torch.equal(values, ordered.values[:, :4])
    assert ((columns >= 0) & (columns < 1000)).all()


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("num_columns", [1, 5, 127, 131, 2000, 49_152])
def test_the_best_columns_are_those_of_a_stable_sort(num_columns: int, compiled: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    # Rows of a wider tensor; few values, so that most are equal to others, on both sides of zero.
    wide = torch.randint(-6, 3, (7, num_columns + 3), generator=generator).float() + 0.25
    scores = wide[:, :num_columns]
    scores[1] = torch.randn(num_columns, generator=generator) * 20
    scores[2] = -torch.inf
    scores[3, num_columns // 2 :] = -torch.inf
    # The best come last.
    scores[4] = torch.arange(num_columns) / 100
    for width in (1, 4, 8):
        with nullcontext() if compiled else mock.patch.object(best_module, "best_kernels", return_value=None):
            best = best_of(scores, width)
        ordered = scores.sort(dim=1, descending=True, stable=True)
        assert torch.equal(best.columns, ordered.indices[:, :width])
        assert torch.equal(best.values, ordered.values[:, :width])
        torch.testing.assert_close(best.log_sums, scores.logsumexp(1))
