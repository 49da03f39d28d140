"""Medusa heads in every format that the wild has, for every test that needs some. The formats are written from their
description, not with the code that reads them."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

Flavour = Literal["v1", "v1-pt", "v2", "vllm", "vllm-prefixed"]
FLAVOURS: tuple[Flavour, ...] = ("v1", "v1-pt", "v2", "vllm", "vllm-prefixed")


@dataclass
class HeadWeights:
    """One head: W [h, h] and b [h] of each residual block, and a projection [V, h], None for the base's LM head."""

    blocks: list[tuple[Tensor, Tensor]]
    projection: Tensor | None


def random_heads(
    num_heads: int,
    num_layers: int,
    hidden: int,
    vocab: int,
    *,
    tied: bool,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> list[HeadWeights]:
    """Heads drawn wide, like `make_checkpoint`: weights, and biases that matter."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return (torch.randn(shape, generator=generator) * 0.3).to(dtype)

    return [
        HeadWeights(
            blocks=[(draw(hidden, hidden), draw(hidden)) for _ in range(num_layers)],
            projection=None if tied else draw(vocab, hidden),
        )
        for _ in range(num_heads)
    ]


def medusa_tensors(heads: list[HeadWeights], prefix: str = "") -> dict[str, Tensor]:
    """The names of v1; without projections those of v2."""
    tensors = {}
    for i, head in enumerate(heads):
        for j, (weight, bias) in enumerate(head.blocks):
            tensors[f"{prefix}{i}.{j}.linear.weight"] = weight
            tensors[f"{prefix}{i}.{j}.linear.bias"] = bias
        if head.projection is not None:
            tensors[f"{prefix}{i}.{len(head.blocks)}.weight"] = head.projection
    return tensors


def vllm_tensors(heads: list[HeadWeights], prefix: str = "") -> dict[str, Tensor]:
    """The names of vLLM's own format."""
    tensors = {}
    for i, head in enumerate(heads):
        for j, (weight, bias) in enumerate(head.blocks):
            tensors[f"{prefix}blocks.{i}.layers.{j}.weight"] = weight
            tensors[f"{prefix}blocks.{i}.layers.{j}.bias"] = bias
        if head.projection is not None:
            tensors[f"{prefix}lm_heads.{i}.weight"] = head.projection
    return tensors


def write_heads(
    folder: str | Path, heads: list[HeadWeights], flavour: Flavour, *, base: str | None, **config_overrides: Any
) -> Path:
    """Write a folder of heads; returns it. An override that is None takes the key out of the config.

    "v2" writes no projections, whatever the heads have; vLLM's formats without projections say `original_lm_head`.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    num_layers = len(heads[0].blocks)
    config: dict[str, Any] = {"base_model_name_or_path": base}
    if flavour in ("vllm", "vllm-prefixed"):
        tensors = vllm_tensors(heads, "medusa_heads." if flavour == "vllm-prefixed" else "")
        save_file(tensors, folder / "model.safetensors")
        vocab = None if heads[0].projection is None else heads[0].projection.shape[0]
        config |= {
            "model_type": "medusa",
            "architectures": ["MedusaModel"],
            "num_heads": len(heads),
            "num_hidden_layers": num_layers,
            "hidden_size": next(iter(tensors.values())).shape[-1],
            "vocab_size": vocab,
            "truncated_vocab_size": vocab,
            "medusa_fc_bias": True,
            "original_lm_head": heads[0].projection is None,
        }
    else:
        if flavour == "v2":
            heads = [HeadWeights(head.blocks, None) for head in heads]
            config["version"] = "2"
        if flavour == "v1-pt":
            torch.save(medusa_tensors(heads), folder / "medusa_lm_head.pt")
        else:
            save_file(medusa_tensors(heads), folder / "medusa_lm_head.safetensors")
        config |= {"medusa_num_heads": len(heads), "medusa_num_layers": num_layers, "transformers_version": "4.36.2"}
    _write_config(folder, config | config_overrides)
    return folder


def write_full_model(
    folder: str | Path, base_folder: str | Path, heads: list[HeadWeights], **config_overrides: Any
) -> Path:
    """Write the base and the heads as one model: tensors `medusa_head.*` in a second file of a safetensors index."""
    folder, base_folder = Path(folder), Path(base_folder)
    shutil.copytree(base_folder, folder)
    (folder / "model.safetensors").unlink()
    files = {
        "model-00001-of-00002.safetensors": load_file(base_folder / "model.safetensors"),
        "model-00002-of-00002.safetensors": medusa_tensors(heads, "medusa_head."),
    }
    for file, tensors in files.items():
        save_file(tensors, folder / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for file, tensors in files.items() for name in tensors}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    config = json.loads((base_folder / "config.json").read_text(encoding="utf-8"))
    config |= {"medusa_num_heads": len(heads), "medusa_num_layers": len(heads[0].blocks)}
    _write_config(folder, config | config_overrides)
    return folder


def _write_config(folder: Path, config: dict[str, Any]) -> None:
    kept = {key: value for key, value in config.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(kept, indent=2), encoding="utf-8")
