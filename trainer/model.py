"""Which base, and where it is computed: from the flags to a folder, a name that servers find it by, and a device."""

import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from launcher.logs import LogWriter
from launcher.medusa import HEADS_FILES
from launcher.resolve import ModelRequest, resolve
from trainer.config import TrainConfig
from trainer.errors import TrainError
from trainer.files import fingerprint

# What the base answers in: as it will be served, and fast where layers are compiled for it.
DTYPE = "bfloat16"

_TEXTS = ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


@dataclass(frozen=True, slots=True)
class BaseModel:
    """`name`: for the heads' config, a hub id or an absolute path; `revision`: of the hub id, None for its main branch.
    `mark`: of its files; what was made with others is of another base."""

    folder: Path
    name: str
    revision: str | None
    mark: str
    device: torch.device


def resolved_base(config: TrainConfig) -> BaseModel:
    """Downloads and converts where needed. Raises TrainError and the launcher's LaunchError."""
    device = _chosen_device(config.device)
    log = LogWriter(level="info", json_output=False, stream=sys.stderr)
    # Without heads that the base may have already.
    request = ModelRequest(config.model_id, config.revision, DTYPE, hub_cache=None, use_heads=False)
    model = resolve(request, log)
    # Not --model-id: that may have named heads, whose base this is.
    return BaseModel(model.path, model.base_name, model.base_revision, mark_of(model.path), device)


def mark_of(folder: Path) -> str:
    """Of what the base says: its configuration, tokenizer, and the first row of each of its weights."""
    texts = [(folder / name).read_bytes().hex() for name in _TEXTS if (folder / name).is_file()]
    weights = [path for path in sorted(folder.glob("*.safetensors")) if path.name not in HEADS_FILES]
    return fingerprint(texts, [_first_rows(path) for path in weights])


def _first_rows(path: Path) -> list[str]:
    try:
        with safe_open(path, "pt") as file:
            return [f"{name} {file.get_slice(name)[:1].double().flatten().tolist()}" for name in sorted(file.keys())]
    except SafetensorError as error:
        raise TrainError(f"{path} is damaged or cut short ({error}); delete it and fetch or copy it again") from error


def _chosen_device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise TrainError("--device cuda: there is no CUDA device here")
    return torch.device(name)
