"""Owns the files of Medusa heads: every format there is, read as one. Knows no layer and no model.

    v1          medusa_lm_head.safetensors or .pt    {i}.{j}.linear.weight, .bias; {i}.{L}.weight
    v2          the same without {i}.{L}.weight: heads project with the base's LM head
    full model  an ordinary model's files            the names of v1 and v2 behind medusa_head.
    vLLM        model.safetensors                    blocks.{i}.layers.{j}.weight, .bias; lm_heads.{i}.weight;
                                                     perhaps behind medusa_heads.

Head i guesses the token at t + 2 + i from the hidden state at t. What is there follows from the tensors, never from
what a config.json says: published ones are wrong about their own number of heads.
"""

import json
import re
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shard.checkpoint import INDEX_FILE, SINGLE_FILE, Checkpoint, CheckpointError, Tensors

SAFETENSORS_FILE = "medusa_lm_head.safetensors"
PICKLED_FILE = "medusa_lm_head.pt"

_FULL_MODEL_PREFIX = "medusa_head."
_ORIGINAL = (
    (re.compile(r"(\d+)\.(\d+)\.linear\.(weight|bias)"), "blocks.{}.{}.{}"),
    (re.compile(r"(\d+)\.\d+\.weight"), "projections.{}.weight"),
)
_VLLM = (
    (re.compile(r"(?:medusa_heads\.)?blocks\.(\d+)\.layers\.(\d+)\.(weight|bias)"), "blocks.{}.{}.{}"),
    (re.compile(r"(?:medusa_heads\.)?lm_heads\.(\d+)\.weight"), "projections.{}.weight"),
    (re.compile(r"(?:medusa_heads\.)?lm_head\.weight"), "lm_head.weight"),
    (re.compile(r"(?:medusa_heads\.)?token_map"), "token_map"),
)


@dataclass(frozen=True, slots=True)
class MedusaCheckpoint:
    """Heads under names of one form: blocks.{i}.{j}.weight and .bias, projections.{i}.weight, token_map.

    `original` gives for each such name the file's own.
    """

    path: Path
    flavour: str
    num_heads: int
    num_layers: int
    original: dict[str, str]
    tensors: Tensors

    @property
    def is_tied(self) -> bool:
        """The heads have no projections of their own."""
        return "projections.0.weight" not in self.original

    @property
    def has_bias(self) -> bool:
        return "blocks.0.0.bias" in self.original

    def names(self) -> set[str]:
        return set(self.original)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.tensors.shape(self.original[name])

    def read(self, name: str, *, dim: int, start: int, stop: int) -> Tensor:
        """Rows start:stop of dimension `dim`, in the dtype of the file, on CPU."""
        return self.tensors.read(self.original[name], dim=dim, start=start, stop=stop)


def open_heads(folder: Path) -> MedusaCheckpoint | None:
    """The heads of a folder, None if it holds none. CheckpointError for files that are broken or incomplete."""
    if (folder / SAFETENSORS_FILE).is_file():
        return _normal(folder, Checkpoint(folder / SAFETENSORS_FILE), folder / SAFETENSORS_FILE)
    if (folder / PICKLED_FILE).is_file():
        return _normal(folder, _PickledFile(folder / PICKLED_FILE), folder / PICKLED_FILE)
    if not (folder / SINGLE_FILE).is_file() and not (folder / INDEX_FILE).is_file():
        return None
    tensors = Checkpoint(folder)
    if any(name.startswith(_FULL_MODEL_PREFIX) for name in tensors.names()):
        return _normal(folder, tensors, folder, prefix=_FULL_MODEL_PREFIX)
    return _normal(folder, tensors, folder) if _is_vllm(tensors.names()) else None


def _normal(folder: Path, tensors: Tensors, source: Path, *, prefix: str = "") -> MedusaCheckpoint:
    names = sorted(name for name in tensors.names() if name.startswith(prefix))
    is_vllm = not prefix and _is_vllm(names)
    original: dict[str, str] = {}
    for name in names:
        ours = _translate(name.removeprefix(prefix), _VLLM if is_vllm else _ORIGINAL)
        if ours is None:
            raise CheckpointError(f"tensor {name} in {source} is not a part of Medusa heads")
        if ours in original:
            raise CheckpointError(f"tensors {original[ours]} and {name} in {source} are for the same place")
        original[ours] = name
    config = _read_config(folder) if is_vllm else {}
    if config.get("original_lm_head"):
        # What the file has is a copy of the base's own.
        original = {ours: name for ours, name in original.items() if not ours.startswith(("projections.", "lm_head."))}
    elif "lm_head.weight" in original:
        raise CheckpointError(
            f"tensor {original['lm_head.weight']} in {source} is for heads that share the base's LM head, but "
            "original_lm_head in config.json does not say so"
        )
    heads = {int(name.split(".")[1]) for name in original if name != "token_map"}
    layers = {int(name.split(".")[2]) for name in original if name.startswith("blocks.")}
    if not heads:
        raise CheckpointError(f"{source} holds no Medusa heads")
    flavour = "full model" if prefix else "vLLM" if is_vllm else "v1" if "projections.0.weight" in original else "v2"
    found = MedusaCheckpoint(folder, flavour, max(heads) + 1, max(layers, default=-1) + 1, original, tensors)
    _prove_complete(found, source, may_lack_bias=is_vllm and not config.get("medusa_fc_bias", False))
    return found


def _read_config(folder: Path) -> dict[str, Any]:
    file = folder / "config.json"
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise CheckpointError(f"{file} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{file} does not hold a JSON object")
    return content


def _prove_complete(found: MedusaCheckpoint, source: Path, *, may_lack_bias: bool) -> None:
    """Every head has what any head has."""
    # The original's blocks always have a bias; vLLM's may have none, but then none has.
    has_bias = not may_lack_bias or any(name.endswith(".bias") for name in found.original)
    for name in _parts(found, has_bias):
        if name not in found.original:
            _, head, *rest = name.split(".")
            part = "projection" if len(rest) == 1 else f"{rest[1]} of block {rest[0]}"
            raise CheckpointError(
                f"{source} holds {found.num_heads} Medusa heads, but the {part} of head {head} is missing; "
                "the file is incomplete"
            )
    for name in _parts(found, has_bias):
        original = found.original[name]
        if found.flavour != "vLLM" and name.startswith("projections.") and _place(original) != found.num_layers:
            raise CheckpointError(
                f"tensor {original} in {source} comes after {_place(original)} blocks, but there are "
                f"{found.num_layers}; the file is incomplete"
            )


def _parts(found: MedusaCheckpoint, has_bias: bool) -> Iterator[str]:
    """One by one: a name in a broken file may speak of a thousand million heads."""
    is_projected = any(name.startswith("projections.") for name in found.original)
    for head in range(found.num_heads):
        if is_projected:
            yield f"projections.{head}.weight"
        for layer in range(found.num_layers):
            yield from (f"blocks.{head}.{layer}.{part}" for part in (("weight", "bias") if has_bias else ("weight",)))


def _place(projection: str) -> int:
    """L of `{i}.{L}.weight`, the number of blocks before it."""
    return int(projection.split(".")[-2])


def _is_vllm(names: Iterable[str]) -> bool:
    # An LM head is in any model's file.
    return any((_translate(name, _VLLM) or "").startswith(("blocks.", "projections.")) for name in names)


def _translate(name: str, table: tuple[tuple[re.Pattern[str], str], ...]) -> str | None:
    for pattern, ours in table:
        if match := pattern.fullmatch(name):
            return ours.format(*match.groups())
    return None


class _PickledFile:
    """Tensors of a .pt file, mapped into memory. Only tensors are unpickled: code is refused (`weights_only`)."""

    def __init__(self, file: Path) -> None:
        try:
            with warnings.catch_warnings():
                # Of files that are no tensors torch says more than the one error below.
                warnings.simplefilter("ignore")
                content: Any = torch.load(file, map_location="cpu", weights_only=True, mmap=_can_map(file))
        except Exception as error:  # a broken file has torch raise whatever its bytes lead to
            raise CheckpointError(
                f"{file} cannot be loaded: it is broken, or holds more than tensors, which is never unpickled; "
                f"save the heads as {SAFETENSORS_FILE}"
            ) from error
        if not isinstance(content, dict) or not all(
            isinstance(name, str) and isinstance(value, Tensor) and value.layout == torch.strided
            for name, value in content.items()
        ):
            raise CheckpointError(f"{file} does not hold tensors by name; save the heads as {SAFETENSORS_FILE}")
        self._tensors: dict[str, Tensor] = content

    def names(self) -> set[str]:
        return set(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._tensors[name].shape)

    def read(self, name: str, *, dim: int, start: int, stop: int) -> Tensor:
        return self._tensors[name].narrow(dim, start, stop - start)


def _can_map(file: Path) -> bool:
    """Files of torch before 1.6 are no zip archives; they are read whole."""
    with file.open("rb") as opened:
        return opened.read(4) == b"PK\x03\x04"
