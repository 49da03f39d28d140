"""The frozen base model by transformers: its final-normed hidden states and its LM head."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from launcher.positions import max_positions
from trainer.errors import TrainError, described


@dataclass(frozen=True, slots=True)
class Base:
    """`lm_head`: [V, h], in the format the base computes in. `max_positions`: None where the config does not say."""

    body: Any
    lm_head: Tensor
    max_positions: int | None

    @property
    def hidden_size(self) -> int:
        return int(self.lm_head.shape[1])

    @property
    def vocab_size(self) -> int:
        return int(self.lm_head.shape[0])

    @torch.inference_mode()
    def hidden_states(self, token_ids: Tensor) -> Tensor:
        """[B, T] padded on the right -> [B, T, h], what the LM head is given at each position.

        Rows of padding come after all others and attention is causal, so that no mask is needed.
        """
        output: Tensor = self.body(input_ids=token_ids, use_cache=False).last_hidden_state
        return output


def load_base(folder: Path, device: torch.device) -> Base:
    """In bfloat16 on CUDA and float32 elsewhere. Raises TrainError."""
    from transformers import AutoModelForCausalLM

    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, output_loading_info=True)
    except Exception as error:  # whatever the library trips over, of any class
        raise TrainError(
            f"{folder} cannot be loaded ({described(error)}); config.json and the weights must fit each other"
        ) from error
    model, info = loaded
    missing = sorted(info["missing_keys"])
    if missing:
        # The library has drawn them at random.
        raise TrainError(
            f"{folder}: its weights lack {len(missing)} tensors of config.json's model, first {missing[0]}"
        )
    model.to(device).eval().requires_grad_(False)
    head = model.get_output_embeddings()
    if head is None or getattr(head, "bias", None) is not None:
        raise TrainError(f"{folder}: heads need a base with an LM head that has no bias")
    return Base(model.base_model, head.weight.detach(), max_positions(model.config.to_dict()))
