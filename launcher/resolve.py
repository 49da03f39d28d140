"""From --model-id to a folder the children can read: local folder, GGUF file, hub id, or the default model.

Reads only the folder's small JSON files; whether the weights are whole is the shards' affair.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from launcher.default_model import DEFAULT_MODEL_ID, default_gguf
from launcher.errors import LaunchError
from launcher.gguf_cache import converted_folder, is_gguf
from launcher.hub import download
from launcher.logs import LogWriter

# Written beside converted weights by shard.convert.
NOTE_FILE = "drafthouse.json"


@dataclass(frozen=True, slots=True)
class ResolvedModel:
    """`model_id` is what users see; `weights_note` says what was done to the weights, "" if nothing."""

    path: Path
    model_id: str
    weights_note: str
    max_positions: int | None


@dataclass(frozen=True, slots=True)
class ModelRequest:
    """The part of the configuration that says which model, and how its GGUF is to be read."""

    model_id: str | None
    revision: str | None
    dtype: str
    hub_cache: str | None


def resolve(request: ModelRequest, log: LogWriter) -> ResolvedModel:
    """Downloads and converts where needed. Raises LaunchError with a message for the user."""
    name = request.model_id
    if name is None:
        _refuse_revision(request, "the default model")
        return _described(converted_folder(default_gguf(log), request.dtype, log), DEFAULT_MODEL_ID)
    local = Path(name).expanduser()
    if local.is_file():
        _refuse_revision(request, "a file")
        if not is_gguf(local):
            raise LaunchError(f"--model-id {name}: this file is not GGUF; give a model folder, a GGUF file or a hub id")
        return _described(converted_folder(local, request.dtype, log), local.stem)
    if local.is_dir():
        _refuse_revision(request, "a local folder")
        return _described(local.resolve(), name)
    if _looks_like_a_path(name):
        raise LaunchError(f"--model-id {name}: there is no such file or folder")
    return _described(download(name, request.revision, request.hub_cache, log), name)


def _looks_like_a_path(name: str) -> bool:
    return name.startswith(("/", ".", "~")) or name.count("/") > 1 or name.endswith((".gguf", "/"))


def _refuse_revision(request: ModelRequest, what: str) -> None:
    if request.revision is not None:
        raise LaunchError(f"--revision {request.revision} is for models from the hub, but --model-id names {what}")


def _described(folder: Path, model_id: str) -> ResolvedModel:
    config = _read_json(folder / "config.json")
    if config is None:
        hint = "; to serve a GGUF in it, name the file" if any(folder.glob("*.gguf")) else ""
        raise LaunchError(f"{folder} holds no config.json, so it is not a model that can be served{hint}")
    positions = config.get("max_position_embeddings")
    note = (_read_json(folder / NOTE_FILE) or {}).get("weights_note", "")
    return ResolvedModel(folder, model_id, str(note), positions if isinstance(positions, int) else None)


def _read_json(path: Path) -> dict[str, object] | None:
    """None if there is no such file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise LaunchError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise LaunchError(f"{path} cannot be read: it is not a JSON object")
    return content
