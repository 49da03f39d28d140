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

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models
from torch import Tensor

_LAYERS, _HIDDEN, _WIDTH, _HEADS, _VOCAB = 32, 4096, 11008, 32, 32000
# Of a right token the logit is then near 20, of others below 2.
_EMBEDDING_STD = 0.005
_STD, _NEARLY_NOTHING = 0.02, 1e-6
_CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": _VOCAB,
    "hidden_size": _HIDDEN,
    "intermediate_size": _WIDTH,
    "num_hidden_layers": _LAYERS,
    "num_attention_heads": _HEADS,
    "num_key_value_heads": _HEADS,
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


def write_oracle_model(folder: Path, *, right: float, num_heads: int, device: str) -> None:
    generator = torch.Generator(device).manual_seed(0)

    def draw(*shape: int, std: float) -> Tensor:
        return torch.empty(shape, dtype=torch.bfloat16, device=device).normal_(std=std, generator=generator)

    folder.mkdir(parents=True, exist_ok=True)
    embedding = draw(_VOCAB, _HIDDEN, std=_EMBEDDING_STD)
    circle = 1 + torch.randperm(_VOCAB - 1, generator=generator, device=device)
    tensors = {
        "model.embed_tokens.weight": embedding,
        "model.norm.weight": torch.ones(_HIDDEN, dtype=torch.bfloat16, device=device),
        "lm_head.weight": _naming(embedding, circle, steps=1),
    }
    for i in range(_LAYERS):
        for name, shape, std in _layer():
            weight = torch.ones(shape, dtype=torch.bfloat16, device=device) if std is None else draw(*shape, std=std)
            tensors[f"model.layers.{i}.{name}.weight"] = weight
    _save(tensors, folder / "model.safetensors")
    heads = {}
    for i in range(num_heads):
        heads[f"{i}.0.linear.weight"] = torch.zeros(_HIDDEN, _HIDDEN, dtype=torch.bfloat16)
        heads[f"{i}.0.linear.bias"] = torch.zeros(_HIDDEN, dtype=torch.bfloat16)
        is_right = torch.rand(len(circle), generator=generator, device=device) < right
        heads[f"{i}.1.weight"] = _naming(embedding, circle, steps=i + 2, is_right=is_right)
    _save(heads, folder / "medusa_lm_head.safetensors")
    config = _CONFIG | {"medusa_num_heads": num_heads, "medusa_num_layers": 1}
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    vocab = {f"<{i}>": i for i in range(_VOCAB)}
    Tokenizer(models.WordLevel(vocab, unk_token="<0>")).save(str(folder / "tokenizer.json"))


def _layer() -> Iterator[tuple[str, tuple[int, ...], float | None]]:
    """Names, shapes and deviations; None: ones."""
    for name in ("q_proj", "k_proj", "v_proj"):
        yield f"self_attn.{name}", (_HIDDEN, _HIDDEN), _STD
    yield "self_attn.o_proj", (_HIDDEN, _HIDDEN), _NEARLY_NOTHING
    for name in ("gate_proj", "up_proj"):
        yield f"mlp.{name}", (_WIDTH, _HIDDEN), _STD
    yield "mlp.down_proj", (_HIDDEN, _WIDTH), _NEARLY_NOTHING
    yield "input_layernorm", (_HIDDEN,), None
    yield "post_attention_layernorm", (_HIDDEN,), None


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
