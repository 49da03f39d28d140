"""Model families by `model_type`, and loading one. A new family is a line here, what its files may say in
`shard.model_config`, and the parts that no other has."""

from pathlib import Path

import torch

from shard.checkpoint import Checkpoint, CheckpointError
from shard.distributed import TPGroup
from shard.layers.quantize import Quantization
from shard.model_config import ModelConfig
from shard.models import gemma, llama, mistral, qwen
from shard.models.decoder import Decoder
from shard.weights import Progress, fill_model

FAMILIES = {
    "llama": llama.FAMILY,
    "mistral": mistral.MISTRAL,
    "mixtral": mistral.MIXTRAL,
    "qwen2": qwen.QWEN2,
    "qwen3": qwen.QWEN3,
    "gemma": gemma.GEMMA,
    "gemma2": gemma.GEMMA2,
    "gemma3_text": gemma.GEMMA3,
}

_LM_HEAD = "lm_head.weight"
# Rows of a matrix that are compared at a time.
_ROWS = 8192
# constants that old files carry, and heads that are read elsewhere
IGNORED = ("model.layers.*.self_attn.rotary_emb.inv_freq", "model.rotary_emb.inv_freq", "medusa_head.**")


def load_model(
    config: ModelConfig,
    path: str | Path,
    *,
    group: TPGroup,
    dtype: torch.dtype,
    device: torch.device,
    quantize: Quantization | None = None,
    progress: Progress | None = None,
) -> Decoder:
    """Build the model and fill it with this rank's slices of the checkpoint folder `path`.

    CheckpointError if the files are broken, incomplete or do not fit the configuration.
    """
    family = FAMILIES[config.model_type]
    checkpoint = Checkpoint(path)
    ignored: tuple[str, ...] = IGNORED
    if config.tie_word_embeddings:
        _refuse_another_head(config, checkpoint)
        ignored = (*IGNORED, _LM_HEAD)
    with torch.inference_mode():
        model = Decoder(config, family, group=group, dtype=dtype, device=device)
        fill_model(
            model,
            checkpoint,
            names=family.names,
            ignored=ignored,
            device=device,
            quantize=quantize,
            progress=progress,
        )
        model.finish()
    return model.eval()


def _refuse_another_head(config: ModelConfig, checkpoint: Checkpoint) -> None:
    """A file may hold a tied head twice. If it is another one, transformers takes it or not, by its version."""
    if _LM_HEAD not in checkpoint.names():
        return
    embedding = lm_head_tensor(config)
    is_same = checkpoint.shape(_LM_HEAD) == checkpoint.shape(embedding) and all(
        torch.equal(
            *(checkpoint.read(name, dim=0, start=start, stop=start + _ROWS).double() for name in (_LM_HEAD, embedding))
        )
        for start in range(0, config.vocab_size, _ROWS)
    )
    if not is_same:
        raise CheckpointError(
            f"config.json ties {_LM_HEAD} to {embedding}, but the weights files hold another {_LM_HEAD}; "
            "set tie_word_embeddings to false, or take that tensor out"
        )


def lm_head_tensor(config: ModelConfig) -> str:
    """The checkpoint's tensor that the LM head projects with."""
    (source,) = FAMILIES[config.model_type].names["embed_tokens" if config.tie_word_embeddings else "lm_head"]
    return f"{source}.weight"
