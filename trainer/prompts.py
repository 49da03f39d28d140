"""Prompts from JSONL files of many makers: the user's first words of each line."""

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trainer.errors import TrainError
from trainer.files import read_lines

_TEXT_FIELDS = ("prompt", "question", "text")


def read_prompts(paths: Sequence[Path]) -> list[str]:
    """In the files' order. Raises TrainError naming a line without a prompt."""
    prompts = []
    for path in paths:
        for number, entry in read_lines(path):
            text = prompt_of(entry)
            if text is None:
                fields = "messages, conversations, turns, prompt, question, text"
                raise TrainError(f"{path}, line {number}: no prompt; a line has one of {fields}")
            prompts.append(text)
    return prompts


def prompt_of(entry: Mapping[str, Any]) -> str | None:
    """From the first field there is; None where none holds a text. Chats may be {role, content} or {from, value}."""
    for name in ("messages", "conversations"):
        if isinstance(entry.get(name), list):
            return _first_user_turn(entry[name])
    if isinstance(entry.get("turns"), list):
        return _text(entry["turns"][0]) if entry["turns"] else None
    return next((_text(entry[name]) for name in _TEXT_FIELDS if name in entry), None)


def drawn(prompts: Sequence[str], limit: int | None, seed: int) -> list[str]:
    """Each once, at most `limit`: a draw from all of them, the same for the same seed."""
    unique = list(dict.fromkeys(prompts))
    return unique if limit is None or limit >= len(unique) else random.Random(seed).sample(unique, limit)


def _first_user_turn(messages: list[Any]) -> str | None:
    for message in messages:
        if isinstance(message, Mapping) and message.get("role", message.get("from")) in ("user", "human"):
            return _text(message.get("content", message.get("value")))
    return None


def _text(value: Any) -> str | None:
    return value.strip() if isinstance(value, str) and value.strip() else None
