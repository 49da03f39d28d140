"""The steps that bench.gpu checks and times, small and interpreted (tests/test_triton_interpreter.py)."""

import pytest
import torch

from bench.gpu.attention import TOLERANCE, Case, Step
from shard.cuda import kernels
from tests.shard.triton_device import INTERPRETED

pytestmark = pytest.mark.skipif(not INTERPRETED, reason="test_triton_interpreter.py runs it")


@pytest.mark.parametrize("case", [Case(1, 300, 1), Case(3, 20, 6)])
def test_a_step_is_right(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_DEVICE_TYPE", "cpu")
    monkeypatch.setattr("shard.cuda.attention.num_processors", lambda device: 8)
    step = Step(case, num_layers=2, dtype=torch.float16, device=torch.device("cpu"))
    step.run()
    assert 0 < step.difference() < TOLERANCE
