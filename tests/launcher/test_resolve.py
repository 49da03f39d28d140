import json
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import errors as hub

from launcher import resolve as resolving
from launcher.errors import LaunchError
from launcher.resolve import ModelRequest, resolve
from tests.launcher.conftest import RecordingLog


def ask(model_id: str | None, revision: str | None = None) -> ModelRequest:
    return ModelRequest(model_id, revision, dtype="bfloat16", hub_cache=None)


def write_model(folder: Path) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"max_position_embeddings": 2048}))
    return folder


def test_a_local_folder_is_taken_as_it_is(tmp_path: Path, log: RecordingLog) -> None:
    folder = write_model(tmp_path / "model")
    model = resolve(ask(str(folder)), log)
    assert (model.path, model.weights_note, model.max_positions) == (folder, "", 2048)


def test_the_note_of_a_converted_model_is_read(tmp_path: Path, log: RecordingLog) -> None:
    folder = write_model(tmp_path / "model")
    (folder / "drafthouse.json").write_text('{"weights_note": "dequantized from Q8_0"}')
    assert resolve(ask(str(folder)), log).weights_note == "dequantized from Q8_0"


def test_an_unknown_folder_is_named(tmp_path: Path, log: RecordingLog) -> None:
    with pytest.raises(LaunchError, match=f"{tmp_path}/nothing: there is no such file or folder"):
        resolve(ask(f"{tmp_path}/nothing"), log)


def test_a_home_folder_that_there_is_not_is_named(tmp_path: Path, log: RecordingLog) -> None:
    with pytest.raises(LaunchError, match=r"^--model-id ~nosuchuser/x: ~nosuchuser is no home folder here$"):
        resolve(ask("~nosuchuser/x"), log)
    heads = ModelRequest(str(write_model(tmp_path / "model")), None, "bfloat16", None, medusa="~nosuchuser/x")
    with pytest.raises(LaunchError, match=r"^--medusa ~nosuchuser/x: ~nosuchuser is no home folder here$"):
        resolve(heads, log)


def test_a_folder_without_a_model_points_to_the_gguf_in_it(tmp_path: Path, log: RecordingLog) -> None:
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    with pytest.raises(LaunchError, match=r"no config\.json.*name the file"):
        resolve(ask(str(tmp_path)), log)


def test_a_file_that_is_not_gguf_is_refused(tmp_path: Path, log: RecordingLog) -> None:
    path = tmp_path / "weights.gguf"
    path.write_bytes(b"PK\x03\x04")
    with pytest.raises(LaunchError, match="not GGUF"):
        resolve(ask(str(path)), log)


def test_a_damaged_config_is_named(tmp_path: Path, log: RecordingLog) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(LaunchError, match=r"config\.json cannot be read"):
        resolve(ask(str(tmp_path)), log)


@pytest.mark.parametrize("local", [True, False])
def test_a_revision_needs_a_model_from_the_hub(tmp_path: Path, log: RecordingLog, local: bool) -> None:
    name = str(write_model(tmp_path / "model")) if local else None
    with pytest.raises(LaunchError, match="--revision main"):
        resolve(ask(name, "main"), log)


def test_a_hub_that_cannot_be_reached_is_said_so(
    tmp_path: Path, log: RecordingLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    request = ModelRequest("someone/no-such-model", None, "bfloat16", hub_cache=str(tmp_path))
    with pytest.raises(LaunchError, match=r"someone/no-such-model.*hub cannot be reached.*HF_HUB_OFFLINE"):
        resolve(request, log)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (hub.RepositoryNotFoundError, "nor a repository on the hub"),
        (hub.GatedRepoError, "gated.*HF_TOKEN"),
        (hub.RevisionNotFoundError, "--revision v9: some/model has no such"),
        (hub.HFValidationError, "nor a valid hub id"),
        (ConnectionError, "download failed"),
    ],
)
def test_each_refusal_of_the_hub_is_one_clear_message(
    log: RecordingLog, monkeypatch: pytest.MonkeyPatch, error: type[Exception], message: str
) -> None:
    def refuse(*args: object, **kwargs: object) -> str:
        raise error.__new__(error)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(LaunchError, match=message):
        resolve(ask("some/model", "v9"), log)


def test_a_hub_repository_without_safetensors_is_refused(
    tmp_path: Path, log: RecordingLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_model(tmp_path / "model")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *args, **kwargs: str(tmp_path / "model"))
    monkeypatch.setattr(huggingface_hub, "list_repo_files", lambda *args, **kwargs: ["config.json", "model.bin"])
    with pytest.raises(LaunchError, match="no safetensors"):
        resolve(ask("some/model"), log)


def test_without_a_model_id_the_default_is_converted(
    tmp_path: Path, log: RecordingLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_model(tmp_path / "model")
    monkeypatch.setattr(resolving, "default_gguf", lambda log: tmp_path / "default.gguf")
    monkeypatch.setattr(resolving, "converted_folder", lambda gguf, dtype, log: folder)
    model = resolve(ask(None), log)
    assert (model.path, model.model_id) == (folder, "SmolLM2-135M-Instruct")
