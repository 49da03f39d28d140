"""The tokenizer of a GGUF file: what transformers reads, made to do what llama.cpp does with the same file.

Owns what files leave for their readers to know: how text is split, what a text begins with, where answers end. Knows
nothing of weights.
"""

import json
from pathlib import Path

from gguf import GGUFReader, TokenType
from tokenizers import Tokenizer, decoders, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerBase

# Of these llama.cpp knows, and the file does not say, that a word which is a token needs no merges, and that a text
# begins with BOS.
LLAMA3 = ("llama3", "llama-v3", "llama-bpe")
# Ways to split text before the merges (`tokenizer.ggml.pre`) that transformers, or `load_tokenizer`, reproduces.
PRE_TOKENIZERS = ("gpt-2", "smollm", *LLAMA3, "qwen2", "deepseek-r1-qwen")
# Control tokens that end an answer or a text, by name: many files give one end, and chats end at another (llama.cpp's
# list, as far as these families have it).
ENDS = (
    "<|eot_id|>",
    "<|eom_id|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
    "<EOT>",
    "</s>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<｜end▁of▁sentence｜>",
)


def load_tokenizer(gguf: Path, reader: GGUFReader) -> PreTrainedTokenizerBase:
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model, split = text_of(reader, "tokenizer.ggml.model"), text_of(reader, "tokenizer.ggml.pre")
    if model == "gpt2":
        _keep_whole(tokenizer, reader)
    backend = tokenizer.backend_tokenizer
    if model == "llama" and text_of(reader, "tokenizer.ggml.add_space_prefix") == "False":
        backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="never", split=False)
        backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    if model == "gpt2" and split in LLAMA3:
        backend.model.ignore_merges = True
        if text_of(reader, "tokenizer.ggml.add_bos_token") is None:
            tokenizer.add_bos_token = True
    if model == "gpt2" and split == "smollm":
        # SmolLM sets every digit apart before GPT-2's split. Without it a run of spaces before a number is cut
        # differently ("a  1"), although single digits come out alike.
        digits = pre_tokenizers.Digits(individual_digits=True)
        bytes_of_words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        backend.pre_tokenizer = pre_tokenizers.Sequence([digits, bytes_of_words])
    return tokenizer


def ends_of(reader: GGUFReader, eos: int | None) -> int | list[int] | None:
    """Every token that ends an answer, `eos` first; as a generation_config.json has it."""
    eot, eom, unknown = (text_of(reader, f"tokenizer.ggml.{name}_token_id") for name in ("eot", "eom", "unknown"))
    ends = [] if eos is None else [eos]
    ends += [int(token_id) for token_id in (eot, eom) if token_id is not None]
    for token_id, token, _ in _special_tokens(reader):
        # SmolLM2 calls its token for the unknown <|endoftext|>; its authors do not let it end an answer either.
        if token in ENDS and str(token_id) != unknown:
            ends.append(token_id)
    distinct = list(dict.fromkeys(ends))
    return distinct if len(distinct) > 1 else next(iter(distinct), None)


def drop_invented_tokens(folder: Path, *, vocab_size: int) -> None:
    """Removes special tokens that the file does not have: transformers appends GPT-2's where a vocabulary lacks it,
    with an id past the end of the embedding."""
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    added = content["added_tokens"]
    content["added_tokens"] = [token for token in added if token["id"] < vocab_size]
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    invented = {token["content"] for token in added if token["id"] >= vocab_size}
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    kept = {key: value for key, value in settings.items() if not (isinstance(value, str) and value in invented)}
    path.write_text(json.dumps(kept, ensure_ascii=False, indent=2), encoding="utf-8")


def _keep_whole(tokenizer: PreTrainedTokenizerBase, reader: GGUFReader) -> None:
    """Puts back special tokens with letters that stand for no byte (DeepSeek's), which transformers writes as bytes."""
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary, added = content["model"]["vocab"], content["added_tokens"]
    spelling = {token_id: token for token, token_id in vocabulary.items()}
    lost = [token for token in _special_tokens(reader) if spelling[token[0]] != token[1]]
    for token_id, token, kind in lost:
        vocabulary[token] = vocabulary.pop(spelling[token_id])
        # transformers has it past the end where it is BOS or EOS.
        added[:] = [other for other in added if other["content"] != token]
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        added.append({"id": token_id, "content": token, **flags, "special": kind == TokenType.CONTROL})
    if lost:
        added.sort(key=lambda token: token["id"])
        tokenizer._tokenizer = Tokenizer.from_str(json.dumps(content))
        tokenizer.update_post_processor()


def _special_tokens(reader: GGUFReader) -> list[tuple[int, str, int]]:
    """Id, text and type of each."""
    tokens, kinds = (reader.get_field(f"tokenizer.ggml.{name}") for name in ("tokens", "token_type"))
    if tokens is None or kinds is None:
        return []
    types = enumerate(kinds.contents())
    special = [(token_id, kind) for token_id, kind in types if kind in (TokenType.CONTROL, TokenType.USER_DEFINED)]
    return [(token_id, tokens.contents(token_id), kind) for token_id, kind in special]


def text_of(reader: GGUFReader, key: str) -> str | None:
    field = reader.get_field(key)
    return None if field is None else str(field.contents())
