"""Steps that look at no value on the host, as on a GPU, bring what exact ones bring. On CPU, by the same code."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from shard.plan import StepPlan
from tests.shard.planned_runs import CASE_IDS, CASES, Case
from tests.shard.recorded import look_at_nothing

# What a GPU would have to be waited for: a result whose size depends on values, or a value itself.
_READING_OPS = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "equal")


class _NoReading(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        assert not name.startswith(_READING_OPS), f"{name} waits for the device"
        if name in ("index", "index_put", "index_put_"):
            assert all(i is None or i.dtype != torch.bool for i in args[1]), "an index by truth waits for the device"
        return func(*args, **(kwargs or {}))


@contextmanager
def nothing_is_read(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def refused(self: Tensor, *_: object) -> Any:
        raise AssertionError("a value was read on the host")

    made = torch.tensor

    def made_on_the_host(*args: Any, **kwargs: Any) -> Tensor:
        assert "device" not in kwargs, "a blocking copy to the device"
        return made(*args, **kwargs)

    with monkeypatch.context() as patch, _NoReading():
        patch.setattr(torch, "tensor", made_on_the_host)
        for name in ("tolist", "item", "__bool__", "__int__", "__float__", "__index__", "numpy"):
            patch.setattr(Tensor, name, refused)
        yield


@pytest.fixture(params=CASES, ids=CASE_IDS)
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Case:
    return Case.make(tmp_path, *request.param)


def test_padded_steps_bring_the_same(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = case.run(case.rank().runner).results()
    look_at_nothing(monkeypatch)
    padded = case.rank().runner

    def unseen(plan: StepPlan) -> Any:
        with nothing_is_read(monkeypatch):
            return padded.launch(plan)

    assert case.run(padded, unseen).results() == expected
    results = [result for step in expected for result in step]
    assert any(result.accepted > 0 for result in results)
    assert any(result.accepted < result.drafted for result in results)
