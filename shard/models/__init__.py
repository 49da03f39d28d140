"""Model families by `model_type`, and loading one. A new family is a line here and the parts that no other has."""

from pathlib import Path

import torch

from shard.checkpoint import Checkpoint
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
    ignored = (*IGNORED, "lm_head.weight") if config.tie_word_embeddings else IGNORED
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


def lm_head_tensor(config: ModelConfig) -> str:
    """The checkpoint's tensor that the LM head projects with."""
    (source,) = FAMILIES[config.model_type].names["embed_tokens" if config.tie_word_embeddings else "lm_head"]
    return f"{source}.weight"
