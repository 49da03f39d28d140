"""The base's tokenizer, for prompts alone: text to the token ids that a chat with the model begins with."""

from pathlib import Path
from typing import Any

from trainer.errors import TrainError, described

# Stands for what a user would say; no template writes it.
_SENTINEL = "<<<drafthouse: the user speaks here>>>"


class BaseTokenizer:
    """Without a chat template a prompt is text to be continued. Where tokenizer or template cannot be used, it
    and its methods raise TrainError."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoTokenizer

        self._folder = folder
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        except Exception as error:  # whatever the library trips over, of any class
            raise TrainError(
                f"{folder}: its tokenizer cannot be read ({described(error)}); "
                "tokenizer.json and tokenizer_config.json must be there and whole"
            ) from error

    def prompt_token_ids(self, text: str) -> list[int]:
        """One turn of a user, rendered up to the words that begin the answer."""
        if self._tokenizer.chat_template is None:
            return list(self._tokenizer(text).input_ids)
        return self._plain(self._rendered(text))

    def user_turn_token_ids(self) -> list[int]:
        """The template's words before a user's turn: what a model continues with a prompt of its own.

        Magpie (Xu et al., 2024, arXiv:2406.08464).
        """
        if self._tokenizer.chat_template is None:
            raise TrainError("--self-prompts needs a base with a chat template; give --data")
        before, found, _ = self._rendered(_SENTINEL).partition(_SENTINEL)
        ids = self._plain(before)
        if not found or not ids:
            raise TrainError("--self-prompts: the chat template has no words before the user's; give --data")
        return ids

    def text(self, token_ids: list[int]) -> str:
        return str(self._tokenizer.decode(token_ids, skip_special_tokens=True))

    def _rendered(self, content: str) -> str:
        messages = [{"role": "user", "content": content}]
        try:
            return str(self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
        except Exception as error:  # a template's own refusal, or any mistake in it
            raise TrainError(
                f"{self._folder}: its chat template does not render one turn of a user ({described(error)}); change "
                "the template (chat_template.jinja or tokenizer_config.json), or give --answers with prompt_token_ids"
            ) from error

    def _plain(self, rendered: str) -> list[int]:
        # The template has written the special tokens.
        return list(self._tokenizer(rendered, add_special_tokens=False).input_ids)
