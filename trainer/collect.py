"""Prompts the base writes by itself, and its answers: asked of the service, kept line by line as they come.

What a file of OUTPUT/work holds already is not asked again.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from tqdm import tqdm

from trainer.client import Client, Refused, for_all
from trainer.errors import TrainError
from trainer.files import drop_torn_line, fingerprint, read_json, read_lines, write_json
from trainer.tokenizer import BaseTokenizer

_MAX_PROMPT_TOKENS = 160
_SAMPLED_TEMPERATURE = 0.7


class Journal:
    """A JSONL file that grows, made under settings that may not change while it does. Raises TrainError if they did."""

    def __init__(self, path: Path, *made_from: object) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        settings = path.with_suffix(".json")
        found = read_json(settings)
        if found is None:
            write_json(settings, {"made_from": fingerprint(*made_from)})
        elif found != {"made_from": fingerprint(*made_from)}:
            raise TrainError(
                f"{path} was begun with another base or other settings: "
                f"give those again, or delete it and {settings.name}"
            )
        drop_torn_line(path)

    def entries(self) -> list[dict[str, Any]]:
        return [entry for _, entry in read_lines(self.path)] if self.path.is_file() else []

    def opened(self) -> TextIO:
        return self.path.open("a", encoding="utf-8")


def missing_self_prompts(journal: Journal, count: int) -> list[int]:
    """The numbers of the prompts, from 0 to `count`, that are still to be written."""
    return sorted(set(range(count)) - {entry["number"] for entry in journal.entries()})


async def write_self_prompts(
    client: Client, tokenizer: BaseTokenizer, journal: Journal, numbers: Sequence[int], *, seed: int
) -> None:
    """What the base says in its user's place, sampled. One that does not end by itself counts as empty."""
    prefix = tokenizer.user_turn_token_ids()
    room = min(_MAX_PROMPT_TOKENS, client.max_total_tokens - len(prefix))
    with journal.opened() as file, tqdm(total=len(numbers), desc="prompts", unit="prompt") as bar:

        async def write(number: int) -> None:
            generated = await client.generate(
                prefix, max_new_tokens=room, temperature=1.0, seed=_drawn_seed(seed, number)
            )
            text = tokenizer.text(generated.token_ids).strip() if generated.ended else ""
            _append(file, {"number": number, "prompt": text})
            bar.update()

        await for_all(numbers, write)


def missing_answers(journal: Journal, prompts: Sequence[list[int]]) -> list[list[int]]:
    """The prompts, as token ids, that have no answer yet."""
    answered = {tuple(entry["prompt_token_ids"]) for entry in journal.entries()}
    return [prompt for prompt in prompts if tuple(prompt) not in answered]


async def write_answers(
    client: Client,
    journal: Journal,
    prompts: Sequence[list[int]],
    *,
    max_tokens: int,
    sampled_fraction: float,
    seed: int,
) -> None:
    """Greedy answers, but sampled for `sampled_fraction` of the prompts; none to a prompt that fills the service. What
    this service refuses is left out, and asked again of the next one."""
    num_tokens, refused = 0, list[str]()
    with journal.opened() as file, tqdm(total=len(prompts), desc="answers", unit="answer") as bar:

        async def write(prompt: list[int]) -> None:
            nonlocal num_tokens
            drawn = _drawn_seed(seed, prompt)
            room = client.max_total_tokens - len(prompt)
            if room < 1:
                # Kept too, or each start would look for it again.
                _append(file, {"prompt_token_ids": prompt, "token_ids": []})
                bar.update()
                return
            try:
                generated = await client.generate(
                    prompt,
                    max_new_tokens=min(max_tokens, room),
                    temperature=_SAMPLED_TEMPERATURE if drawn < sampled_fraction * 2**64 else 0.0,
                    seed=drawn,
                )
            except Refused as error:
                refused.append(str(error))
                return
            finally:
                bar.update()
            _append(file, {"prompt_token_ids": prompt, "token_ids": generated.token_ids})
            num_tokens += len(generated.token_ids)
            bar.set_postfix_str(f"{num_tokens} tokens")

        try:
            await for_all(prompts, write)
        finally:
            if refused:
                bar.write(f"{len(refused)} prompts are left out, the service refuses them: {refused[0]}")


def _append(file: TextIO, entry: dict[str, Any]) -> None:
    file.write(json.dumps(entry, ensure_ascii=False) + "\n")
    file.flush()


def _drawn_seed(*parts: object) -> int:
    """64 bits that depend on nothing but `parts`."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big")
