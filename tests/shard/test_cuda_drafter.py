"""A drafter by Triton kernels against one that works by torch's operations: both see the same steps.

Compiled where there is a GPU, interpreted without one, as test_cuda_attention.py.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shard.captured_steps import CapturedSteps
from shard.model_runner import ModelRunner
from shard.plan import Sampling
from shard.speculation.drafting import TorchDrafting
from shard.speculation.prices import DevicePrices
from tests.shard.drafting import DEPTH, Side, assert_same_steps, random_prices
from tests.shard.planned_runs import CASE_IDS, CASES, Case
from tests.shard.recorded import RecordedCapture, as_on_a_gpu
from tests.shard.triton_device import DEVICE, INTERPRETED, needs_gpu

pytestmark = [] if INTERPRETED else [pytest.mark.gpu, needs_gpu]


@contextmanager
def _drafters(*, by_kernels: bool) -> Iterator[None]:
    """Whoever is made here looks at no values."""
    from shard.cuda.drafter import DraftingKernels

    kernels = DraftingKernels if by_kernels else None
    with pytest.MonkeyPatch.context() as patch:
        for module in ("shard.states", "shard.speculation.drafter"):
            patch.setattr(f"{module}.is_readable", lambda device: False)
        patch.setattr("shard.speculation.drafter.drafting_for", lambda device: kernels)
        yield


def _side(seed: int, min_match: int | None, num_heads: int, *, by_kernels: bool) -> Side:
    with _drafters(by_kernels=by_kernels):
        side = Side(seed, min_match=min_match, num_heads=num_heads, device=DEVICE)
    assert (side.drafter._on_device is not None) == by_kernels
    return side


def _prices(seed: int, count: int) -> DevicePrices:
    packed = DevicePrices.pack(random_prices(seed, count))
    return DevicePrices(torch.tensor(packed, dtype=torch.float64, device=DEVICE))


@given(
    seed=st.integers(0, 10_000),
    min_match=st.sampled_from([None, 1, 2]),
    num_heads=st.sampled_from([0, 2, DEPTH + 1]),
    num_prices=st.integers(0, 3),
)
@settings(max_examples=40)
def test_kernels_learn_and_draft_the_same(seed: int, min_match: int | None, num_heads: int, num_prices: int) -> None:
    if not num_heads:
        min_match = min_match or 1
    kernels, plain = (_side(seed, min_match, num_heads, by_kernels=by_kernels) for by_kernels in (True, False))
    prices = _prices(seed, num_prices)
    with pytest.MonkeyPatch.context() as patch:
        # Nothing fits into one.
        for name, size in (("_TEXT_TILE", 8), ("_DRAFT_TILE", 16), ("_TOTAL_TILE", 16), ("_SEQUENCE_TILE", 2)):
            patch.setattr(f"shard.cuda.drafter.{name}", size)
        assert_same_steps((kernels, prices), (plain, prices), seed)


@pytest.mark.skipif(not INTERPRETED, reason="test_captured_steps.py runs whole steps on a GPU")
@pytest.mark.parametrize("case", CASES[1:2], ids=CASE_IDS[1:2])
def test_steps_whose_drafts_kernels_make_bring_the_same(
    case: tuple[list[Sampling], bool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from shard.cuda.decide import decide
    from shard.cuda.drafter import DraftingKernels

    planned = Case.make(tmp_path, *case)
    expected = planned.run(planned.rank().runner).results()
    as_on_a_gpu(monkeypatch)
    monkeypatch.setattr("shard.speculation.drafter.drafting_for", lambda device: DraftingKernels)
    # By operations drafts are made where the host knows the prices; kernels learn from them, too.
    assert planned.run(ModelRunner(planned.rank().runner.step)).results() == expected
    # Filled up, and run as they are: what kernels do nobody writes down.
    monkeypatch.setattr(CapturedSteps, "_is_to_be_captured", lambda *_: False)
    # What is learned from are columns of its rows.
    monkeypatch.setattr("shard.decision.decide_for", lambda device: decide)
    monkeypatch.setattr(TorchDrafting, "propose", mock.Mock(side_effect=AssertionError("drafts by torch operations")))
    runner = ModelRunner(planned.rank().runner.step, capture=RecordedCapture())
    assert planned.run(runner).results() == expected
