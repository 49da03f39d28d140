"""Tiny random checkpoints in the format of real ones, for every test that needs a model folder.

Weights are drawn wide (std 0.3): a tied tiny model with the usual 0.02 repeats one token for ever.
"""

from pathlib import Path
from typing import Any

import torch

EOS_TOKEN = "<|end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}<|start|>{{ message['role'] }}\n{{ message['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
# special tokens come first, then the letters of a byte-level alphabet: ids above are never produced by the tokenizer
SPECIAL_TOKENS = (EOS_TOKEN, "<|start|>", "<|pad|>")


def make_checkpoint(
    folder: str | Path,
    family: str = "llama",
    *,
    num_layers: int = 2,
    hidden: int = 72,
    heads: int = 9,
    kv_heads: int = 3,
    head_dim: int = 16,
    vocab: int = 131,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    **config_overrides: Any,
) -> Path:
    """Write a random model of `family` and a tokenizer to `folder`; returns it. Overrides go to the family's config.

    Without `eos_token_id` among the overrides the end token is id 0, which a random model seldom chooses.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    folder = Path(folder)
    settings: dict[str, Any] = {
        "num_hidden_layers": num_layers,
        "hidden_size": hidden,
        "intermediate_size": 3 * hidden,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "vocab_size": vocab,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": 0,
        "pad_token_id": None,
    }
    config = AutoConfig.for_model(family, **(settings | config_overrides))
    generator = torch.Generator().manual_seed(seed)
    # gemma's files hold what is added to one
    norm_centre = 0 if family.startswith("gemma") else 1
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            draw = torch.randn(parameter.shape, generator=generator) * 0.3
            parameter.copy_(norm_centre + draw if name.endswith("norm.weight") else draw)
    model.to(dtype)
    model.config.dtype = dtype
    model.generation_config.do_sample = False
    model.save_pretrained(folder)
    write_tokenizer(folder, vocab)
    return folder


def write_tokenizer(folder: Path, vocab: int) -> None:
    """A byte-level tokenizer without merges that fits `vocab` ids; bytes beyond it are encoded as the pad token."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    # Ġ and Ċ are space and newline: with the printable ASCII they come first, so that small vocabularies hold them
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet(), key=lambda letter: (letter not in "ĠĊ", letter))
    letters = {letter: len(SPECIAL_TOKENS) + i for i, letter in enumerate(alphabet[: vocab - len(SPECIAL_TOKENS)])}
    ids = {token: i for i, token in enumerate(SPECIAL_TOKENS)} | letters
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=[], unk_token="<|pad|>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL_TOKENS])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=EOS_TOKEN, pad_token="<|pad|>", chat_template=CHAT_TEMPLATE
    )
    fast.save_pretrained(folder)
