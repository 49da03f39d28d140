"""`python -m bench.gpu.oracle_model FOLDER --right 0.8`: a model of 7B with Medusa heads that know what it says.

Weights are random and as many as in Vicuna-7B, but what layers add is nearly nothing: so the hidden state is the
token's embedding, the LM head can name for each token the one that follows it in a long circle, and head i the one that
follows i + 1 later. It costs what a real model costs, and of a head's guesses as many are right as is wanted; lookup
finds nothing, since no text comes twice.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models
from torch import Tensor

# Of a right token; of others it is below 2.
_LOGIT = 20.0
_STD, _NEARLY_NOTHING = 0.02, 1e-6
VICUNA_7B: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    # The one token that nothing leads to.
    "eos_token_id": 0,
    "torch_dtype": "bfloat16",
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu.oracle_model", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--right", type=float, default=0.8, help="share of a head's guesses that are right (%(default)s)"
    )
    parser.add_argument("--heads", type=int, default=4, help="number of heads (%(default)s)")
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    write_oracle_model(options.folder, right=options.right, num_heads=options.heads, device=device)


def write_oracle_model(
    folder: Path, *, right: float, num_heads: int, device: str, config: dict[str, Any] = VICUNA_7B
) -> None:
    """`config` is of a llama without groups of heads."""
    generator = torch.Generator(device).manual_seed(0)
    hidden, vocab_size = config["hidden_size"], config["vocab_size"]

    def draw(shape: tuple[int, ...], std: float) -> Tensor:
        return torch.empty(shape, dtype=torch.bfloat16, device=device).normal_(std=std, generator=generator)

    def ones() -> Tensor:
        return torch.ones(hidden, dtype=torch.bfloat16, device=device)

    folder.mkdir(parents=True, exist_ok=True)
    embedding = draw((vocab_size, hidden), _LOGIT / hidden)
    circle = 1 + torch.randperm(vocab_size - 1, generator=generator, device=device)
    tensors = {
        "model.embed_tokens.weight": embedding,
        "model.norm.weight": ones(),
        "lm_head.weight": _naming(embedding, circle, steps=1),
    }
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        for name, shape, std in _matrices(hidden, config["intermediate_size"]):
            tensors[f"{layer}.{name}.weight"] = draw(shape, std)
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{layer}.{name}.weight"] = ones()
    _save(tensors, folder / "model.safetensors")
    heads = {}
    for i in range(num_heads):
        heads[f"{i}.0.linear.weight"] = torch.zeros(hidden, hidden, dtype=torch.bfloat16)
        heads[f"{i}.0.linear.bias"] = torch.zeros(hidden, dtype=torch.bfloat16)
        is_right = torch.rand(len(circle), generator=generator, device=device) < right
        heads[f"{i}.1.weight"] = _naming(embedding, circle, steps=i + 2, is_right=is_right)
    _save(heads, folder / "medusa_lm_head.safetensors")
    config = config | {"medusa_num_heads": num_heads, "medusa_num_layers": 1}
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    vocab = {f"<{i}>": i for i in range(vocab_size)}
    Tokenizer(models.WordLevel(vocab, unk_token="<0>")).save(str(folder / "tokenizer.json"))


def _matrices(hidden: int, width: int) -> Iterator[tuple[str, tuple[int, int], float]]:
    """Of a layer: names, shapes and deviations."""
    for name in ("q_proj", "k_proj", "v_proj"):
        yield f"self_attn.{name}", (hidden, hidden), _STD
    yield "self_attn.o_proj", (hidden, hidden), _NEARLY_NOTHING
    for name in ("gate_proj", "up_proj"):
        yield f"mlp.{name}", (width, hidden), _STD
    yield "mlp.down_proj", (hidden, width), _NEARLY_NOTHING


def _naming(embedding: Tensor, circle: Tensor, *, steps: int, is_right: Tensor | None = None) -> Tensor:
    """[V, hidden]: a head that sees a token of the circle and names the one `steps` later, or where it is not right
    the one before that."""
    weight = torch.zeros_like(embedding)
    named = circle.roll(-steps)
    if is_right is not None:
        named = torch.where(is_right, named, circle.roll(1 - steps))
    # Two tokens may have the same name; then it is that of both.
    return weight.index_add_(0, named, embedding[circle])


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    save_file({name: tensor.contiguous().cpu() for name, tensor in tensors.items()}, path, metadata={"format": "pt"})


if __name__ == "__main__":
    main()
