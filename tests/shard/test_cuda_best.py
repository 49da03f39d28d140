"""The best of wide rows, by the Triton kernels, against a stable sort.

Compiled where there is a GPU, interpreted without one, as test_cuda_attention.py.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shard import sampler
from tests.shard.triton_device import DEVICE, INTERPRETED, needs_gpu

pytestmark = [] if INTERPRETED else [pytest.mark.gpu, needs_gpu]


@given(
    values=st.lists(st.sampled_from([-torch.inf, -2.0, -0.0, 0.0, 1.0, 1.5]), min_size=1, max_size=40),
    num_columns=st.sampled_from([1, 7, 256, 1024, 1025, 3000, 4096]),
    num_unused=st.integers(0, 3),
)
@settings(max_examples=60)
def test_the_first_of_the_greatest_is_that_of_the_torch_path(
    values: list[float], num_columns: int, num_unused: int
) -> None:
    from shard.cuda.best import first_max

    # Rows of a wider tensor, as the logits of a padded vocabulary are; equals are in many parts of a row.
    wide = torch.full((3, num_columns + num_unused), 9.0, device=DEVICE)
    scores = wide[:, :num_columns]
    for row in range(3):
        scores[row] = torch.tensor(values).repeat(-(-num_columns // len(values)))[:num_columns].roll(row)
    best, columns = first_max(scores)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampler, "best_kernels", lambda: None)
        patch.setattr(sampler, "best_for", lambda dtype, device: None)
        expected = sampler.first_max(scores.contiguous())
    assert torch.equal(best, expected[0])
    assert torch.equal(columns, expected[1])


def test_what_is_not_a_number_is_not_chosen() -> None:
    from shard.cuda.best import first_max

    scores = torch.zeros(3, 2000, device=DEVICE)
    scores[0, :1500] = torch.nan
    scores[1] = torch.nan
    scores[2, 1999] = torch.nan
    assert first_max(scores)[1].tolist() == [1500, 0, 0]


# The interpreter's, of a logarithm of 0.
@pytest.mark.filterwarnings("ignore:divide by zero")
@pytest.mark.parametrize("num_columns", [1, 5, 127, 1024, 1026, 2000, 49_152])
def test_the_best_columns_are_those_of_a_stable_sort(num_columns: int) -> None:
    from shard.cuda.best import best

    generator = torch.Generator().manual_seed(0)
    # Rows of a wider tensor; few values, so that most are equal to others, on both sides of zero.
    wide = torch.randint(-6, 3, (5, num_columns + 3), generator=generator).float() + 0.25
    wide = wide.to(DEVICE)
    scores = wide[:, :num_columns]
    scores[1] = torch.randn(num_columns, generator=generator) * 20
    scores[2] = -torch.inf
    scores[3, num_columns // 2 :] = -torch.inf
    # The best come last.
    scores[4] = torch.arange(num_columns) / 100
    ordered = scores.sort(dim=1, descending=True, stable=True)
    for width in (1, 4, 7):
        columns, values, log_sums = best(scores, width)
        assert torch.equal(columns, ordered.indices[:, :width])
        assert torch.equal(values, ordered.values[:, :width])
        torch.testing.assert_close(log_sums, scores.logsumexp(1))
