"""Prompts with the base's answers as token ids: how they are read, which are used, and which are held out.

Knows nothing of where they come from; `collect.py` makes them with the service.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.errors import TrainError
from trainer.files import read_lines
from trainer.tokenizer import BaseTokenizer


@dataclass(frozen=True, slots=True)
class Answer:
    prompt_token_ids: tuple[int, ...]
    token_ids: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.prompt_token_ids) + len(self.token_ids)


def read_answers(path: Path, tokenizer: BaseTokenizer) -> list[Answer]:
    """Lines with `token_ids` and either `prompt_token_ids` or `prompt`, which the chat template is applied to."""
    answers = []
    for number, entry in read_lines(path):
        prompt = entry.get("prompt_token_ids")
        if prompt is None and isinstance(entry.get("prompt"), str):
            prompt = tokenizer.prompt_token_ids(entry["prompt"])
        if not _are_token_ids(prompt) or not _are_token_ids(entry.get("token_ids")):
            raise TrainError(
                f'{path}, line {number}: an answer is {{"prompt_token_ids" or "prompt": …, "token_ids": […]}}'
            )
        answers.append(Answer(tuple(prompt), tuple(entry["token_ids"])))
    return answers


def usable(answers: Sequence[Answer], *, vocab_size: int, max_positions: int | None) -> list[Answer]:
    """Each prompt's first answer, where it fits the model and is long enough to teach; the longest first.

    The order is a function of the set, so that features once computed stay in step with it.
    """
    by_prompt = {answer.prompt_token_ids: answer for answer in reversed(answers)}
    kept = []
    for answer in by_prompt.values():
        top = max((*answer.prompt_token_ids, *answer.token_ids), default=0)
        if top >= vocab_size:
            raise TrainError(f"an answer holds token {top}, but the base has {vocab_size}: they are of another model")
        # The first head of the first row needs a second token.
        if answer.prompt_token_ids and len(answer.token_ids) >= 2 and len(answer) <= (max_positions or len(answer)):
            kept.append(answer)
    return sorted(kept, key=lambda answer: (-len(answer), answer.prompt_token_ids))


def is_held_out(answer: Answer, share: float) -> bool:
    """By a hash of the prompt: the same in every run, and never the same prompt on both sides."""
    digest = hashlib.sha256(repr(answer.prompt_token_ids).encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def _are_token_ids(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(type(item) is int and item >= 0 for item in value)
