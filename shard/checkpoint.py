"""Owns the files of a safetensors checkpoint: which file holds which tensor, and reading a part of one.

Format: huggingface.co/docs/safetensors; several files are tied together by model.safetensors.index.json. Nothing is
ever unpickled. Knows no model.
"""

import json
from pathlib import Path
from typing import Any, Protocol

from safetensors import SafetensorError, safe_open
from torch import Tensor

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"


class CheckpointError(Exception):
    """The weights cannot be loaded; the message names the file or tensor and what is wrong with it."""


class Tensors(Protocol):
    """What is asked of files of tensors; `Checkpoint` says what the methods do."""

    def names(self) -> set[str]: ...

    def shape(self, name: str) -> tuple[int, ...]: ...

    def read(self, name: str, *, dim: int, start: int, stop: int) -> Tensor: ...


class Checkpoint:
    """All tensors of a model folder, or of one file, by name."""

    def __init__(self, path: str | Path) -> None:
        """Open every file and read its header. CheckpointError for missing and broken files."""
        self._files: dict[str, Any] = {}
        files = _files(Path(path))
        indexed = set().union(*(listed or () for listed in files.values()))
        for file, listed in files.items():
            opened = _open(file)
            held = set(opened.keys())
            if missing := sorted((listed or held) - held):
                raise CheckpointError(f"{file} does not hold tensor {missing[0]}, which {INDEX_FILE} lists")
            # What the index says of another file is read from that.
            self._files |= dict.fromkeys(held - (indexed - (listed or set())), opened)

    def names(self) -> set[str]:
        """Every tensor in the files."""
        return set(self._files)

    def shape(self, name: str) -> tuple[int, ...]:
        """Full shape of a tensor. CheckpointError if there is none of that name."""
        if name not in self._files:
            raise CheckpointError(f"tensor {name} is missing from the weights files")
        return tuple(self._files[name].get_slice(name).get_shape())

    def read(self, name: str, *, dim: int, start: int, stop: int) -> Tensor:
        """Rows start:stop of dimension `dim`, in the dtype of the file, on CPU. Only these bytes are read."""
        part: Tensor = self._files[name].get_slice(name)[(*(slice(None),) * dim, slice(start, stop))]
        return part


def _files(path: Path) -> dict[Path, set[str] | None]:
    """File -> tensors it must hold (None: whatever it holds)."""
    if path.is_file():
        return {path: None}
    single, index = path / SINGLE_FILE, path / INDEX_FILE
    # Of both transformers takes the single file, too.
    if single.exists():
        return {single: None}
    if not index.exists():
        raise CheckpointError(f"{path} holds neither {SINGLE_FILE} nor {INDEX_FILE}; download the safetensors weights")
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        files: dict[Path, set[str] | None] = {}
        for name, file in weight_map.items():
            if Path(file).name != file:
                raise ValueError(f"{file!r} is no file of its folder")
            files[path / file] = (files.get(path / file) or set()) | {name}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index} is not a safetensors index: {error!r}") from error
    for file in files:
        if not file.exists():
            raise CheckpointError(f"{file} is missing, but {INDEX_FILE} lists it; download it again")
    return files


def _open(file: Path) -> Any:
    try:
        return safe_open(file, framework="pt", device="cpu")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} is truncated or not a safetensors file ({error}); download it again") from error
