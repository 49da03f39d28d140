import json
import shutil
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from launcher.logs import LogWriter
from launcher.resolve import ModelRequest, resolve
from tests.checkpoints import make_checkpoint
from tests.fake_hub import FakeHub
from trainer.__main__ import main
from trainer.config import TrainConfig
from trainer.model import mark_of, resolved_base


def _config(*words: str) -> TrainConfig:
    return TrainConfig(**main.make_context("train-medusa", ["--output=new", *words]).params)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    """With heads, org/heads, and their base, org/base."""
    hub = FakeHub.installed(tmp_path, monkeypatch)
    base = make_checkpoint(hub.remote / "org/base")
    hub.add("org/heads", {"medusa_num_heads": 3, "base_model_name_or_path": "org/base"}, "medusa_lm_head.pt")
    shutil.copytree(base, tmp_path / "base")
    return hub


def test_heads_that_are_named_stand_for_their_base(hub: FakeHub, tmp_path: Path) -> None:
    old = tmp_path / "old"
    old.mkdir()
    for named, base in [("org/base", "org/base"), ("../base", str(tmp_path / "base"))]:
        (old / "config.json").write_text(json.dumps({"medusa_num_heads": 3, "base_model_name_or_path": named}))
        assert resolved_base(_config("--model-id=old")).name == base
    assert resolved_base(_config("--model-id=base")).name == str(tmp_path / "base")
    for model_id in ("org/heads", "org/base"):
        assert resolved_base(_config(f"--model-id={model_id}")).name == "org/base"


def test_the_revision_of_a_base_is_served_again(hub: FakeHub, tmp_path: Path) -> None:
    answers = "".join(f'{{"prompt": "Number {i}", "token_ids": [5, 6, 7]}}\n' for i in range(9))
    (tmp_path / "a.jsonl").write_text(answers)
    words = ["--model-id=org/base", "--revision=v1", "--output=new", "--answers=a.jsonl", "--held-out=.3", "--epochs=1"]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 0, result.stderr
    hub.revisions.clear()
    request = ModelRequest("new", None, "float32", None)
    assert resolve(request, LogWriter(level="error", json_output=False)).medusa_path == tmp_path / "new"
    assert hub.revisions == {"org/base": {"v1"}}


def test_a_base_is_known_by_what_it_says_whatever_lies_beside_it(tmp_path: Path) -> None:
    file = make_checkpoint(tmp_path) / "model.safetensors"
    before = mark_of(tmp_path)
    file.touch()
    (tmp_path / "generation_config.json").write_text("{}")
    save_file({"0.linear.weight": torch.zeros(3, 3)}, tmp_path / "medusa_lm_head.safetensors")
    assert mark_of(tmp_path) == before
    weights = load_file(file)
    name = "model.layers.1.self_attn.v_proj.weight"
    save_file(weights | {name: weights[name] + 1e-3}, file)
    trained_on = mark_of(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("")
    assert len({before, trained_on, mark_of(tmp_path)}) == 3
