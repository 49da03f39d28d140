"""A model's whole forward path over the Triton kernels, interpreted (tests/test_triton_interpreter.py)."""

import os
from pathlib import Path

import pytest

from shard.cuda import kernels
from tests.checkpoints import make_checkpoint
from tests.shard.paged import PagedModel, random_tokens

pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="test_triton_interpreter.py runs it")


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
