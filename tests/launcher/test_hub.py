"""Models and heads on a hub that is a folder of repositories here: what is asked of it, and how often."""

import json
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from launcher.errors import LaunchError
from launcher.resolve import ModelRequest, ResolvedModel, resolve
from tests.fake_hub import FakeHub
from tests.launcher.conftest import RecordingLog

BASE = {"model_type": "mistral", "max_position_embeddings": 4096}
HEADS = {"base_model_name_or_path": "org/base", "medusa_num_heads": 3, "medusa_num_layers": 1}
TOKENIZER = ("tokenizer.json", "tokenizer_config.json")
MODEL_FILES = ("model.safetensors", "consolidated.safetensors", "pytorch_model.bin", "onnx/model.safetensors")


@pytest.fixture
def fake_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    fake = FakeHub.installed(tmp_path, monkeypatch)
    fake.add("org/base", BASE, *MODEL_FILES, *TOKENIZER)
    return fake


def serve(log: RecordingLog, model_id: str, **request: Any) -> ResolvedModel:
    return resolve(ModelRequest(model_id, request.pop("revision", None), "bfloat16", None, **request), log)


def test_of_a_model_only_what_serving_needs_is_fetched(fake_hub: FakeHub, log: RecordingLog) -> None:
    model = serve(log, "org/base")
    assert (model.path, model.model_id, model.medusa_path) == (fake_hub.cache / "org/base", "org/base", None)
    assert model.base_name == "org/base"
    assert fake_hub.fetched("org/base") == {"config.json", "model.safetensors", *TOKENIZER}


@pytest.mark.parametrize(
    ("files", "needed"),
    [
        (("medusa_lm_head.safetensors", "medusa_lm_head.pt"), {"medusa_lm_head.safetensors"}),
        (("medusa_lm_head.pt",), {"medusa_lm_head.pt"}),
        (
            ("medusa_lm_head.safetensors", "drafthouse_medusa.json"),
            {"medusa_lm_head.safetensors", "drafthouse_medusa.json"},
        ),
    ],
)
def test_of_heads_only_the_heads_are_fetched(
    fake_hub: FakeHub, log: RecordingLog, files: tuple[str, ...], needed: set[str]
) -> None:
    fake_hub.add("org/heads", HEADS | {"architectures": ["MistralForCausalLM"]}, *files, *TOKENIZER)
    model = serve(log, "org/heads")
    assert (model.path, model.medusa_path) == (fake_hub.cache / "org/base", fake_hub.cache / "org/heads")
    assert (model.model_id, model.medusa_name, model.max_positions) == ("org/heads", "org/heads", 4096)
    assert model.base_name == "org/base"
    assert fake_hub.fetched("org/heads") == {"config.json"} | needed


def test_heads_in_vllms_format_have_a_models_file_names(fake_hub: FakeHub, log: RecordingLog) -> None:
    fake_hub.add("org/heads", {"model_type": "medusa", "num_heads": 3}, "model.safetensors", "tokenizer.json")
    with pytest.raises(LaunchError, match="--model-id BASE --medusa org/heads"):
        serve(log, "org/heads")
    assert serve(log, "org/base", medusa="org/heads").medusa_path == fake_hub.cache / "org/heads"
    assert fake_hub.fetched("org/heads") == {"config.json", "model.safetensors"}


def test_a_revision_belongs_to_the_repository_that_the_user_named(fake_hub: FakeHub, log: RecordingLog) -> None:
    fake_hub.add("org/heads", HEADS, "medusa_lm_head.safetensors")
    serve(log, "org/heads", revision="v2")
    assert fake_hub.revisions == {"org/heads": {"v2"}, "org/base": {None}}
    fake_hub.revisions.clear()
    serve(log, "org/base", revision="v1", medusa="org/heads", medusa_revision="v3")
    assert fake_hub.revisions == {"org/base": {"v1"}, "org/heads": {"v3"}}


def test_heads_may_name_the_revision_of_their_base(fake_hub: FakeHub, log: RecordingLog) -> None:
    fake_hub.add("org/heads", HEADS | {"base_model_revision": "v1"}, "medusa_lm_head.safetensors")
    model = serve(log, "org/heads", revision="v2")
    assert fake_hub.revisions == {"org/heads": {"v2"}, "org/base": {"v1"}}
    assert (model.base_name, model.base_revision) == ("org/base", "v1")
    (fake_hub.cache.parent / "org" / "base").mkdir(parents=True)
    with pytest.raises(LaunchError, match="base_model_revision of org/heads: v1 is for repositories of the hub"):
        serve(log, "org/heads")


def test_a_base_that_has_gone_from_the_hub_can_be_named(fake_hub: FakeHub, log: RecordingLog) -> None:
    fake_hub.add("org/heads", HEADS | {"base_model_name_or_path": "org/gone"}, "medusa_lm_head.safetensors")
    with pytest.raises(LaunchError, match=r"org/gone, named by .*org/heads.*--model-id BASE --medusa org/heads"):
        serve(log, "org/heads")
    model = serve(log, "org/base", medusa="org/heads")
    assert (model.path, model.medusa_path) == (fake_hub.cache / "org/base", fake_hub.cache / "org/heads")


def test_a_path_in_heads_from_the_hub_is_not_looked_for_in_the_cache(fake_hub: FakeHub, log: RecordingLog) -> None:
    fake_hub.add("org/heads", HEADS | {"base_model_name_or_path": "../base"}, "medusa_lm_head.safetensors")
    serve(log, "org/base")
    with pytest.raises(LaunchError, match=r"base model \.\./base.*no such file or folder.*--medusa org/heads"):
        serve(log, "org/heads")


def test_local_heads_bring_their_base_from_the_hub(tmp_path: Path, fake_hub: FakeHub, log: RecordingLog) -> None:
    heads = tmp_path / "heads"
    heads.mkdir()
    (heads / "config.json").write_text(json.dumps(HEADS))
    (heads / "medusa_lm_head.pt").touch()
    model = serve(log, str(heads))
    assert (model.path, model.medusa_path) == (fake_hub.cache / "org/base", heads)


def test_heads_that_are_not_used_are_not_fetched(fake_hub: FakeHub, log: RecordingLog) -> None:
    fake_hub.add("org/heads", HEADS, "medusa_lm_head.safetensors")
    fake_hub.add("org/both", BASE, "model.safetensors", "medusa_lm_head.safetensors")
    assert serve(log, "org/heads", use_heads=False).medusa_path is None
    assert serve(log, "org/both", use_heads=False).medusa_path is None
    assert fake_hub.fetched("org/heads") == {"config.json"}
    assert fake_hub.fetched("org/both") == {"config.json", "model.safetensors"}


@pytest.mark.parametrize("file", ["medusa_lm_head.safetensors", "medusa_lm_head.pt"])
def test_heads_beside_the_weights_of_their_model_are_served(fake_hub: FakeHub, log: RecordingLog, file: str) -> None:
    fake_hub.add("org/both", BASE | {"medusa_num_heads": 2}, "model.safetensors", file)
    model = serve(log, "org/both")
    assert model.path == model.medusa_path == fake_hub.cache / "org/both"
    assert fake_hub.fetched("org/both") == {"config.json", "model.safetensors", file}


def test_offline_heads_and_base_come_from_the_cache(fake_hub: FakeHub, log: RecordingLog) -> None:
    fake_hub.add("org/heads", HEADS, "medusa_lm_head.safetensors")
    online = serve(log, "org/heads")
    fake_hub.offline = True
    assert serve(log, "org/heads") == online
    assert "the hub does not answer: org/heads is taken from the cache" in log.text


def test_a_download_that_breaks_off_is_one_message_whatever_error_the_transport_has_for_it(
    fake_hub: FakeHub, log: RecordingLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    class ReadTimeout(Exception):
        """Of the hub client's own HTTP client: no OSError, nor an error of the hub."""

    def break_off(*args: object, **kwargs: object) -> str:
        raise ReadTimeout("The read operation timed out")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", break_off)
    with pytest.raises(LaunchError, match=r"org/base: the download failed \(The read operation timed out\); try again"):
        serve(log, "org/base")
