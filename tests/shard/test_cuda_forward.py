"""A model's whole forward path, and the whole end of steps, over the Triton kernels, interpreted
(tests/test_triton_interpreter.py)."""

from pathlib import Path
from typing import Any

import pytest

from shard.cuda import kernels
from shard.model_runner import ModelRunner
from tests.checkpoints import make_checkpoint
from tests.shard.paged import PagedModel, random_tokens
from tests.shard.planned_runs import CASE_IDS, CASES, Case
from tests.shard.recorded import as_on_a_gpu
from tests.shard.triton_device import INTERPRETED

pytestmark = pytest.mark.skipif(not INTERPRETED, reason="test_triton_interpreter.py runs it")


@pytest.mark.parametrize(
    ("family", "overrides"),
    [("llama", {}), ("gemma2", {"sliding_window": 3, "attn_logit_softcapping": 2.0, "query_pre_attn_scalar": 16})],
)
def test_greedy_tokens_are_those_of_the_torch_path(
    family: str, overrides: dict[str, float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_checkpoint(tmp_path, family, **overrides)
    prompts = [random_tokens(length, seed=length) for length in (3, 17)]
    expected = PagedModel(folder).greedy(prompts, 8, chunk=9)
    monkeypatch.setattr(kernels, "_DEVICE_TYPE", "cpu")
    monkeypatch.setattr("shard.cuda.attention.num_processors", lambda device: 132)
    paged = PagedModel(folder)
    assert paged.model.kernels["attention"] == kernels.NAME
    assert paged.greedy(prompts, 8, chunk=9) == expected


@pytest.mark.parametrize("params", CASES[-1:], ids=CASE_IDS[-1:])
def test_steps_end_as_by_the_torch_path(params: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from shard.cuda import best
    from shard.cuda.commit import commit
    from shard.cuda.decide import decide

    as_on_a_gpu(monkeypatch)
    case = Case.make(tmp_path, *params)

    def results() -> Any:
        return case.run(ModelRunner(case.rank("float32").runner.step), digits=4).results()

    expected = results()
    for module in ("shard.sampler", "shard.medusa.best"):
        monkeypatch.setattr(f"{module}.best_for", lambda dtype, device: best)
    monkeypatch.setattr("shard.decision.decide_for", lambda device: decide)
    monkeypatch.setattr("shard.kv_cache.commit_for", lambda dtype, device: commit)
    assert results() == expected
