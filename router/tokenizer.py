"""Text to token ids and back, as a checkpoint's own tokenizer files say.

Owns reading tokenizer.json and the small files beside it. Knows nothing of requests' other fields, of streams or of
incremental decoding.
"""

import json
from collections.abc import Mapping, Sequence
from enum import Enum, auto
from pathlib import Path
from typing import Any

import tokenizers

from router.chat_template import ChatTemplate
from router.errors import InvalidRequest

# Beyond any vocabulary: what stands for a token is a list's index here, and an integer of 32 bits on the wire.
_MOST_TOKENS = 1 << 24


class TokenizerError(ValueError):
    """The tokenizer's files are missing or cannot be read; the message names the file."""


class TokenKind(Enum):
    # Special tokens, and ids that the tokenizer does not know (rows that pad the embedding).
    SILENT = auto()
    TEXT = auto()
    # `<0xNN>` of a tokenizer that falls back to bytes: a run of them becomes text as a whole.
    BYTE = auto()


class Tokenizer:
    """`eos_token_ids` end a generation, as the checkpoint's generation settings say. Safe to use from threads."""

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        eos_token_ids: frozenset[int] = frozenset(),
        chat_template: ChatTemplate | None = None,
    ) -> None:
        # Some files ask for padding and truncation, which serve training only.
        backend.no_padding()
        backend.no_truncation()
        self._backend = backend
        self._chat_template = chat_template
        self._kinds = _token_kinds(backend)
        self.eos_token_ids = eos_token_ids

    @classmethod
    def from_folder(cls, folder: Path) -> "Tokenizer":
        """Reads tokenizer.json, and where present tokenizer_config.json, special_tokens_map.json, chat_template.jinja,
        generation_config.json and config.json, as the Hugging Face hub names them. Raises TokenizerError."""
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise TokenizerError(
                f"{path} is missing: save the model's tokenizer in the fast format (tokenizer.json) there"
            )
        try:
            backend = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises nothing narrower
            raise TokenizerError(f"{path} cannot be read: {error}") from error
        config = _read_json(folder / "special_tokens_map.json") | _read_json(folder / "tokenizer_config.json")
        special_tokens = {name: token for name in config if (token := _special_token(config, name)) is not None}
        source = _chat_template_source(folder, config)
        try:
            chat_template = None if source is None else ChatTemplate(source, special_tokens)
        except ValueError as error:
            raise TokenizerError(f"{folder}: {error}") from error
        return cls(
            backend,
            eos_token_ids=_eos_token_ids(folder, backend, special_tokens.get("eos_token")),
            chat_template=chat_template,
        )

    def encode(self, text: str) -> list[int]:
        """Special tokens are added as tokenizer.json's post-processor says."""
        # The form that lets other threads run: a long text takes seconds.
        return self._backend.encode_batch_fast([text])[0].ids

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text without special tokens."""
        return self._backend.decode(token_ids, skip_special_tokens=True)

    def apply_chat_template(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """The conversation as the model was taught to read it, up to where its answer begins.

        Each message has a "role" and a "content". The template writes the special tokens itself, so none are added.
        Raises InvalidRequest when there is no template or the template refuses the messages.
        """
        if self._chat_template is None:
            raise InvalidRequest("chat", "this model has no chat template; send text or token_ids instead")
        text = self._chat_template.render(messages)
        return self._backend.encode_batch_fast([text], add_special_tokens=False)[0].ids

    def token(self, token_id: int) -> str:
        """The token as the vocabulary spells it; empty for an id it does not have."""
        return self._backend.id_to_token(token_id) or ""

    def kind(self, token_id: int) -> TokenKind:
        return self._kinds[token_id] if token_id < len(self._kinds) else TokenKind.SILENT


def _read_json(path: Path) -> dict[str, Any]:
    """Empty when the file does not exist."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError) as error:
        raise TokenizerError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise TokenizerError(f"{path} must hold a JSON object")
    return content


def _special_token(config: Mapping[str, Any], name: str) -> str | None:
    """A special token is written as its text, or as an object with its text in "content"."""
    if not name.endswith("_token"):
        return None
    token = config[name]
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else None


def _chat_template_source(folder: Path, config: Mapping[str, Any]) -> str | None:
    """A file of its own wins over tokenizer_config.json, where several templates may be named; "default" is meant."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    template = config.get("chat_template")
    if isinstance(template, list):
        entries = [entry for entry in template if isinstance(entry, dict) and entry.get("name") == "default"]
        template = entries[-1].get("template") if entries else None
    return template if isinstance(template, str) else None


def _eos_token_ids(folder: Path, backend: tokenizers.Tokenizer, eos_token: str | None) -> frozenset[int]:
    """The first of generation_config.json, config.json and the tokenizer's own end token that says anything."""
    for name in ("generation_config.json", "config.json"):
        ids = _read_json(folder / name).get("eos_token_id")
        if ids is not None:
            listed = ids if isinstance(ids, list) else [ids]
            if not all(type(token_id) is int and 0 <= token_id < _MOST_TOKENS for token_id in listed):
                raise TokenizerError(f"{folder / name}: eos_token_id must be a token id or a list of them, not {ids!r}")
            return frozenset(listed)
    token_id = None if eos_token is None else backend.token_to_id(eos_token)
    return frozenset() if token_id is None else frozenset({token_id})


def _token_kinds(backend: tokenizers.Tokenizer) -> list[TokenKind]:
    vocabulary = backend.get_vocab(with_added_tokens=True)
    num_tokens = max(vocabulary.values(), default=-1) + 1
    if num_tokens > _MOST_TOKENS:
        raise TokenizerError(f"tokenizer.json has a token id {num_tokens - 1}; at most {_MOST_TOKENS - 1} is possible")
    kinds = [TokenKind.SILENT] * num_tokens
    falls_back_to_bytes = '"ByteFallback"' in json.dumps(json.loads(backend.to_str())["decoder"])
    for token, token_id in vocabulary.items():
        is_byte = falls_back_to_bytes and len(token) == 6 and token.startswith("<0x") and token.endswith(">")
        kinds[token_id] = TokenKind.BYTE if is_byte else TokenKind.TEXT
    for token_id, added in backend.get_added_tokens_decoder().items():
        if added.special:
            kinds[token_id] = TokenKind.SILENT
    return kinds
