"""The texts that are measured: prompts.jsonl beside this file, one object a line with `id`, `workload` and `text`."""

import json
from dataclasses import dataclass
from pathlib import Path

WORKLOADS = ("chat", "copy", "code")
_FILE = Path(__file__).with_name("prompts.jsonl")


@dataclass(frozen=True, slots=True)
class Prompt:
    """`text` is the one user message of a conversation."""

    id: str
    workload: str
    text: str


def load_prompts(per_workload: int) -> dict[str, list[Prompt]]:
    """The first `per_workload` prompts of each workload."""
    prompts = [Prompt(**json.loads(line)) for line in _FILE.read_text(encoding="utf-8").splitlines()]
    return {name: [p for p in prompts if p.workload == name][:per_workload] for name in WORKLOADS}
