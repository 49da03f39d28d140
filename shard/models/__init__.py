"""Model families by `model_type`, and loading one. A new family is a file and a line in the registry."""

from pathlib import Path
from typing import NamedTuple, Protocol

import torch

from shard.checkpoint import Checkpoint
from shard.distributed import TPGroup
from shard.model_config import ModelConfig
from shard.models import llama, qwen3
from shard.weights import NameTable, Progress, fill_model


class Build(Protocol):
    """Makes a family's model without weights."""

    def __call__(
        self, config: ModelConfig, *, group: TPGroup, dtype: torch.dtype, device: torch.device
    ) -> llama.Llama: ...


class Family(NamedTuple):
    """How to build a family and what its checkpoints call the parts."""

    build: Build
    names: NameTable
    ignored: tuple[str, ...]


FAMILIES = {
    "llama": Family(llama.Llama, llama.NAMES, llama.IGNORED),
    "qwen3": Family(qwen3.build, qwen3.NAMES, qwen3.IGNORED),
}


def load_model(
    config: ModelConfig,
    path: str | Path,
    *,
    group: TPGroup,
    dtype: torch.dtype,
    device: torch.device,
    progress: Progress | None = None,
) -> llama.Llama:
    """Build the model and fill it with this rank's slices of the checkpoint folder `path`.

    CheckpointError if the files are broken, incomplete or do not fit the configuration.
    """
    family = FAMILIES[config.model_type]
    checkpoint = Checkpoint(path)
    ignored = (*family.ignored, "lm_head.weight") if config.tie_word_embeddings else family.ignored
    with torch.inference_mode():
        model = family.build(config, group=group, dtype=dtype, device=device)
        fill_model(model, checkpoint, names=family.names, ignored=ignored, device=device, progress=progress)
    return model.eval()
