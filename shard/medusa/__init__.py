"""Medusa heads: from a folder, whatever its format, to layers that hold this rank's slices."""

from pathlib import Path

import torch
from torch import Tensor

from shard.checkpoint import Checkpoint, CheckpointError
from shard.distributed import TPGroup
from shard.layers.embedding import ParallelLMHead
from shard.medusa.checkpoint import MedusaCheckpoint, open_heads
from shard.medusa.figures import HeadFigures, read_figures
from shard.medusa.heads import MedusaHeads
from shard.models import lm_head_tensor
from shard.models.decoder import Decoder
from shard.weights import Progress, fill_model

__all__ = ["HeadFigures", "MedusaHeads", "load_heads"]

# Of the LM head: one by one they take long, all together may be a gigabyte.
_ROWS_AT_ONCE = 1024
_NAMES = {"blocks.*.*": ("blocks.*.*",), "projections.*": ("projections.*",)}


def load_heads(
    model: Decoder,
    *,
    path: Path,
    base_path: Path,
    group: TPGroup,
    dtype: torch.dtype,
    device: torch.device,
    num_heads: int | None,
    progress: Progress | None = None,
) -> MedusaHeads | None:
    """The first `num_heads` heads (None: all) in the folder `path` for `model`, whose own files are in `base_path`.

    None if the folder holds no heads. CheckpointError if they are broken, fewer, or for another model.
    """
    found = open_heads(path)
    if found is None:
        return None
    num_heads = found.num_heads if num_heads is None else num_heads
    if num_heads > found.num_heads:
        raise CheckpointError(
            f"--speculate {num_heads} asks for {num_heads} Medusa heads, but {path} has {found.num_heads}; lower it"
        )
    config = model.config
    vocab_size, hidden_size = config.vocab_size, config.hidden_size
    _check_sizes(found, hidden_size=hidden_size, vocab_size=vocab_size)
    num_rows, token_ids = _projected_tokens(found, vocab_size)
    figures = read_figures(path, vocab_size=vocab_size)
    shared: ParallelLMHead | None = None
    if found.is_tied and figures is not None and figures.token_ids:
        token_ids = torch.tensor(figures.token_ids)
        num_rows = len(token_ids)
        shared = _frequent_rows(model, base_path, figures.token_ids, group=group, dtype=dtype, device=device)
    elif found.is_tied:
        shared = model.lm_head
    num_projections = 0 if found.is_tied else num_heads
    with torch.inference_mode():
        heads = MedusaHeads(
            hidden_size=hidden_size,
            num_heads=num_heads,
            num_layers=found.num_layers,
            bias=found.has_bias,
            projections=[
                ParallelLMHead(num_rows, hidden_size, group=group, dtype=dtype, tied_to=None)
                for _ in range(num_projections)
            ],
            shared=shared,
            num_rows=num_rows,
            token_ids=None if token_ids is None else token_ids.to(device),
            figures=figures,
            description=_description(found, num_heads, num_rows if num_rows < vocab_size else None),
            group=group,
            dtype=dtype,
        )
        unused = [f"{part}.{i}.**" for part in ("blocks", "projections") for i in range(num_heads, found.num_heads)]
        fill_model(heads, found, names=_NAMES, ignored=[*unused, "token_map"], device=device, progress=progress)
    return heads.eval()


def _projected_tokens(found: MedusaCheckpoint, vocab_size: int) -> tuple[int, Tensor | None]:
    """How many rows projections have, and the tokens that they stand for, None if row r is token r."""
    if found.is_tied:
        return vocab_size, None
    num_rows = found.shape("projections.0.weight")[0]
    if "token_map" not in found.original:
        return num_rows, None
    if found.shape("token_map") != (num_rows,):
        raise CheckpointError(f"{found.path}: token_map has not one entry for each of the {num_rows} rows of a head")
    token_map = found.read("token_map", dim=0, start=0, stop=num_rows).long()
    if not 0 <= int(token_map.min()) <= int(token_map.max()) < vocab_size:
        raise CheckpointError(f"{found.path}: token_map names tokens outside the vocabulary of {vocab_size}")
    return num_rows, token_map


def _check_sizes(found: MedusaCheckpoint, *, hidden_size: int, vocab_size: int) -> None:
    """In words of the checkpoint's own; `fill_model` checks everything once more."""
    for name, original in sorted(found.original.items()):
        shape = found.shape(name)
        if len(shape) != (2 if name.endswith(".weight") else 1) or 0 in shape:
            raise CheckpointError(f"tensor {original} in {found.path} has shape {list(shape)}: it is no part of a head")
        if name == "token_map":
            continue
        size = shape[-1]
        if size != hidden_size:
            raise CheckpointError(
                f"the Medusa heads in {found.path} are for a hidden size of {size} (tensor {original}), "
                f"the model has {hidden_size}; they are for another model"
            )
        is_projection = name.startswith("projections.")
        if is_projection and (shape[0] > vocab_size or (found.flavour != "vLLM" and shape[0] != vocab_size)):
            raise CheckpointError(
                f"the Medusa heads in {found.path} are for a vocabulary of {shape[0]} tokens (tensor {original}), "
                f"the model has {vocab_size}; they are for another model"
            )


def _frequent_rows(
    model: Decoder, base_path: Path, token_ids: list[int], *, group: TPGroup, dtype: torch.dtype, device: torch.device
) -> ParallelLMHead:
    """This rank's share of the LM head's rows of these tokens, read again: the model may keep them in another form."""
    layer = ParallelLMHead(len(token_ids), model.config.hidden_size, group=group, dtype=dtype, tied_to=None)
    checkpoint, name = Checkpoint(base_path), lm_head_tensor(model.config)
    weight = torch.zeros(layer.rows.size, model.config.hidden_size, dtype=dtype)
    wanted = torch.tensor(token_ids[layer.rows.start : layer.rows.stop])
    for start in range(0, model.config.vocab_size, _ROWS_AT_ONCE):
        stop = min(start + _ROWS_AT_ONCE, model.config.vocab_size)
        (places,) = torch.where((wanted >= start) & (wanted < stop))
        if len(places):
            weight[places] = checkpoint.read(name, dim=0, start=start, stop=stop)[wanted[places] - start].to(dtype)
    layer.fill("weight", weight.to(device))
    layer.finish()
    return layer


def _description(found: MedusaCheckpoint, num_heads: int, num_tokens: int | None) -> str:
    layers = f"{found.num_layers} layer{'' if found.num_layers == 1 else 's'}"
    over = "" if num_tokens is None else f" over {num_tokens} tokens"
    return f"{found.flavour}, {num_heads} of {found.num_heads} heads with {layers}{over}"
