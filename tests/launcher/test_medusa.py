"""Heads by their files, in local folders: what is recognized, where the base is found, what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from launcher import default_model
from launcher import resolve as resolving
from launcher.errors import LaunchError
from launcher.resolve import ModelRequest, ResolvedModel, resolve
from tests.launcher.conftest import RecordingLog

V1 = {"medusa_num_heads": 3, "medusa_num_layers": 1, "transformers_version": "4.36.2"}
V1_FILE = ("medusa_lm_head.safetensors",)


def write_folder(folder: Path, config: dict[str, object] | None, files: tuple[str, ...]) -> Path:
    folder.mkdir()
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    for file in files:
        (folder / file).write_bytes(b"")
    return folder


def write_base(folder: Path, **config: object) -> Path:
    return write_folder(
        folder, {"model_type": "llama", "max_position_embeddings": 2048} | config, ("model.safetensors",)
    )


def serve(log: RecordingLog, model_id: Path | str | None, **request: Any) -> ResolvedModel:
    name = None if model_id is None else str(model_id)
    return resolve(ModelRequest(name, request.pop("revision", None), "bfloat16", None, **request), log)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_base(tmp_path / "base")


@pytest.mark.parametrize(
    ("config", "files"),
    [
        (V1, V1_FILE),
        (V1 | {"version": "2"}, V1_FILE),
        (V1, ("medusa_lm_head.pt",)),
        ({}, V1_FILE),
        (V1 | {"model_type": ""}, V1_FILE),
        (V1 | {"architectures": ["LlamaForCausalLM"]}, V1_FILE),
        (V1 | {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}, V1_FILE),
        (V1, (*V1_FILE, "tokenizer.json", "tokenizer.model")),
        ({"model_type": "medusa", "architectures": ["MedusaModel"], "num_heads": 4}, ("model.safetensors",)),
    ],
)
def test_heads_of_every_format_bring_the_base_that_they_name(
    tmp_path: Path, base: Path, log: RecordingLog, config: dict[str, object], files: tuple[str, ...]
) -> None:
    heads = write_folder(tmp_path / "heads", config | {"base_model_name_or_path": str(base)}, files)
    model = serve(log, heads)
    assert (model.path, model.medusa_path, model.max_positions) == (base, heads, 2048)
    assert model.model_id == model.medusa_name == str(heads)


@pytest.mark.parametrize("config", [{}, {"medusa_num_heads": 3, "base_model_name_or_path": "lmsys/elsewhere"}])
def test_a_full_model_is_served_as_it_is(tmp_path: Path, log: RecordingLog, config: dict[str, object]) -> None:
    folder = write_base(tmp_path / "full", **config)
    model = serve(log, folder)
    assert (model.path, model.medusa_path) == (folder, None)


def test_heads_in_the_folder_of_their_model_are_served_with_it(tmp_path: Path, base: Path, log: RecordingLog) -> None:
    (base / "medusa_lm_head.safetensors").write_bytes(b"")
    other = write_folder(tmp_path / "other", V1, V1_FILE)
    assert serve(log, base).medusa_path == base
    assert serve(log, base, medusa=str(other)).medusa_path == other
    assert serve(log, base, use_heads=False).medusa_path is None


@pytest.mark.parametrize("named", ["../base", "base", "./../base"])
def test_a_relative_base_is_found_from_the_heads_wherever_the_launcher_runs(
    tmp_path: Path, base: Path, log: RecordingLog, monkeypatch: pytest.MonkeyPatch, named: str
) -> None:
    heads = write_folder(tmp_path / "heads", V1 | {"base_model_name_or_path": named}, V1_FILE)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert serve(log, heads).path == base
    assert serve(log, "../heads").path == base
    assert serve(log, "../heads").base_name == serve(log, "../base").base_name == str(base)


def test_the_base_of_heads_may_be_a_gguf_file(
    tmp_path: Path, base: Path, log: RecordingLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "small.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr(resolving, "converted_folder", lambda gguf, dtype, log: base)
    heads = write_folder(tmp_path / "heads", V1 | {"base_model_name_or_path": "small.gguf"}, V1_FILE)
    model = serve(log, heads)
    assert (model.path, model.medusa_path, model.model_id) == (base, heads, str(heads))
    assert model.base_name == str(tmp_path / "small.gguf")


def test_heads_can_be_added_to_any_model(tmp_path: Path, base: Path, log: RecordingLog) -> None:
    heads = write_folder(tmp_path / "heads", V1 | {"base_model_name_or_path": "/gone"}, V1_FILE)
    full = write_base(tmp_path / "full", medusa_num_heads=5)
    assert serve(log, base, medusa=str(full)).medusa_path == full
    for folder in (base, full):
        model = serve(log, folder, medusa=str(heads))
        assert (model.path, model.model_id, model.medusa_path) == (folder, str(folder), heads)


@pytest.mark.parametrize("config", [V1, None])
def test_heads_without_a_base_are_refused_but_can_be_added(
    tmp_path: Path, base: Path, log: RecordingLog, config: dict[str, object] | None
) -> None:
    heads = write_folder(tmp_path / "heads", config, V1_FILE)
    with pytest.raises(LaunchError, match=f"does not say for which model.*--model-id BASE --medusa {heads}"):
        serve(log, heads)
    assert serve(log, base, medusa=str(heads)).medusa_path == heads


def test_a_base_that_has_moved_can_be_named(tmp_path: Path, log: RecordingLog) -> None:
    heads = write_folder(tmp_path / "heads", V1 | {"base_model_name_or_path": "/gone/base"}, V1_FILE)
    with pytest.raises(LaunchError, match=f"/gone/base.*no such file or folder.*--model-id BASE --medusa {heads}"):
        serve(log, heads)


def test_heads_of_heads_are_refused(tmp_path: Path, log: RecordingLog) -> None:
    write_folder(tmp_path / "first", V1 | {"base_model_name_or_path": "x/y"}, V1_FILE)
    second = write_folder(tmp_path / "second", V1 | {"base_model_name_or_path": "../first"}, V1_FILE)
    with pytest.raises(LaunchError, match=r"base model \.\./first, named by the heads .*second: it holds heads again"):
        serve(log, second)


def test_heads_named_twice_are_refused(tmp_path: Path, base: Path, log: RecordingLog) -> None:
    heads = write_folder(tmp_path / "heads", V1 | {"base_model_name_or_path": str(base)}, V1_FILE)
    with pytest.raises(LaunchError, match=f"--model-id {heads} holds Medusa heads itself.*--medusa {heads}"):
        serve(log, heads, medusa=str(heads))


def test_a_folder_with_a_config_of_heads_and_no_weights_is_refused(
    tmp_path: Path, base: Path, log: RecordingLog
) -> None:
    heads = write_folder(tmp_path / "heads", V1 | {"base_model_name_or_path": str(base)}, ("tokenizer.json",))
    with pytest.raises(LaunchError, match=rf"--model-id {heads} holds no weights of Medusa heads.*medusa_lm_head\.pt"):
        serve(log, heads)


def test_what_holds_no_heads_cannot_be_added(tmp_path: Path, base: Path, log: RecordingLog) -> None:
    heads = write_folder(tmp_path / "heads", V1, V1_FILE)
    for name, message in [
        (base, f"--medusa {base} holds no Medusa heads"),
        (heads / V1_FILE[0], "this is a file; give the folder"),
        (tmp_path / "nothing", f"--medusa {tmp_path}/nothing: there is no such file or folder"),
    ]:
        with pytest.raises(LaunchError, match=message):
            serve(log, base, medusa=str(name))


def test_a_revision_is_refused_where_heads_are_a_folder(tmp_path: Path, base: Path, log: RecordingLog) -> None:
    heads = write_folder(tmp_path / "heads", V1 | {"base_model_name_or_path": str(base)}, V1_FILE)
    with pytest.raises(LaunchError, match=f"--revision v9 .*--model-id {heads} is a local folder"):
        serve(log, heads, revision="v9")
    with pytest.raises(LaunchError, match=f"--medusa-revision v9 .*--medusa {heads} is a local folder"):
        serve(log, base, medusa=str(heads), medusa_revision="v9")


def test_without_speculation_by_heads_none_are_served(tmp_path: Path, base: Path, log: RecordingLog) -> None:
    heads = write_folder(tmp_path / "heads", V1 | {"base_model_name_or_path": str(base)}, V1_FILE)
    model = serve(log, heads, use_heads=False)
    assert (model.path, model.model_id, model.medusa_path) == (base, str(heads), None)
    assert serve(log, base, medusa="not/looked-at", use_heads=False).medusa_path is None
    assert "--medusa not/looked-at is not looked at" in log.text


def test_the_default_model_comes_with_its_heads(
    tmp_path: Path, base: Path, log: RecordingLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resolving, "default_gguf", lambda log: tmp_path / "default.gguf")
    monkeypatch.setattr(resolving, "converted_folder", lambda gguf, dtype, log: base)
    monkeypatch.setattr(default_model, "HEADS_FOLDER", tmp_path / "default_heads")
    assert serve(log, None).medusa_path is None
    installed = write_folder(tmp_path / "default_heads", V1, V1_FILE)
    other = write_folder(tmp_path / "other", V1, V1_FILE)
    assert serve(log, None).medusa_path == installed
    assert serve(log, None, medusa=str(other)).medusa_path == other
    assert serve(log, None, use_heads=False).medusa_path is None
