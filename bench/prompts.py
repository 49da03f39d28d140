"""What is asked: random tokens, or prompts.jsonl beside this file, an object a line: `id`, `workload` and `text`."""

import json
import random
from dataclasses import dataclass
from pathlib import Path

WORKLOADS = ("chat", "copy", "code")
RANDOM = "random"
_FILE = Path(__file__).with_name("prompts.jsonl")


@dataclass(frozen=True, slots=True)
class Prompt:
    """`text` is the one user message of a conversation; with `token_ids` these are the whole prompt instead."""

    id: str
    workload: str
    text: str
    token_ids: tuple[int, ...] = ()


def load_prompts(per_workload: int) -> dict[str, list[Prompt]]:
    """The first `per_workload` prompts of each workload."""
    prompts = [Prompt(**json.loads(line)) for line in _FILE.read_text(encoding="utf-8").splitlines()]
    return {name: [p for p in prompts if p.workload == name][:per_workload] for name in WORKLOADS}


def random_prompts(count: int, *, vocab_size: int, length: int = 200) -> list[Prompt]:
    """Token ids drawn evenly from the vocabulary: text that nothing can foresee. The same at each call."""
    rng = random.Random(0)
    return [
        Prompt(f"{RANDOM}-{i + 1}", RANDOM, "", tuple(rng.randrange(vocab_size) for _ in range(length)))
        for i in range(count)
    ]
