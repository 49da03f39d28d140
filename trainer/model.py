"""Which base, and where it is computed: from the flags to a folder, a name that servers find it by, and a device."""

import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from launcher.logs import LogWriter
from launcher.resolve import ModelRequest, resolve
from trainer.config import TrainConfig
from trainer.errors import TrainError
from trainer.files import fingerprint_of_folder

# What the base answers in: as it will be served, and fast where layers are compiled for it.
DTYPE = "bfloat16"


@dataclass(frozen=True, slots=True)
class BaseModel:
    """`name`: for the heads' config, a hub id or an absolute path. `mark`: of its files; what was made with others is
    of another base."""

    folder: Path
    name: str
    mark: str
    device: torch.device


def resolved_base(config: TrainConfig) -> BaseModel:
    """Downloads and converts where needed. Raises TrainError and the launcher's LaunchError."""
    device = _chosen_device(config.device)
    log = LogWriter(level="info", json_output=False, stream=sys.stderr)
    # Without heads that the base may have already.
    request = ModelRequest(config.model_id, config.revision, DTYPE, hub_cache=None, use_heads=False)
    folder = resolve(request, log).path
    mark = fingerprint_of_folder(folder)
    if config.model_id is None or Path(config.model_id).expanduser().is_dir():
        return BaseModel(folder, str(folder), mark, device)
    file = Path(config.model_id).expanduser()
    return BaseModel(folder, str(file.resolve()) if file.is_file() else config.model_id, mark, device)


def _chosen_device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise TrainError("--device cuda: there is no CUDA device here")
    return torch.device(name)
