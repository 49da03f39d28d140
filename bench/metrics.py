"""Reads what the service says of itself in /metrics: step times and drafts, of which differences of two readings are of
interest, and what is held just now.
"""

import urllib.request
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

_STEP = "drafthouse_step_duration_seconds"
_DRAFTS = ("drafthouse_speculation_drafted_tokens_total", "drafthouse_speculation_accepted_tokens_total")


@dataclass(frozen=True, slots=True)
class Steps:
    """Number of steps and their seconds on the device thread. `prompt_`: those that held a prompt chunk."""

    num: int
    seconds: float
    prompt_num: int
    prompt_seconds: float

    def __sub__(self, before: "Steps") -> "Steps":
        return Steps(
            self.num - before.num,
            self.seconds - before.seconds,
            self.prompt_num - before.prompt_num,
            self.prompt_seconds - before.prompt_seconds,
        )

    def __add__(self, other: "Steps") -> "Steps":
        return Steps(
            self.num + other.num,
            self.seconds + other.seconds,
            self.prompt_num + other.prompt_num,
            self.prompt_seconds + other.prompt_seconds,
        )


NO_STEPS = Steps(0, 0.0, 0, 0.0)
# Drafted and accepted tokens by (method, position from 1).
Drafts = dict[tuple[str, int], tuple[int, int]]


def read_steps(url: str) -> Steps:
    return parse_steps(_read(url))


def read_drafts(url: str) -> Drafts:
    return parse_drafts(_read(url))


def parse_drafts(text: str) -> Drafts:
    """From the exposition format of Prometheus. What was never drafted is left out."""
    counts: dict[tuple[str, int], list[int]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name in _DRAFTS:
                key = sample.labels["method"], int(sample.labels["position"])
                counts.setdefault(key, [0, 0])[_DRAFTS.index(sample.name)] = int(sample.value)
    return {key: (drafted, accepted) for key, (drafted, accepted) in sorted(counts.items()) if drafted}


def read_held(url: str) -> list[str]:
    """Sequences that run or wait, and blocks that they use: "3 running sequences", …"""
    return parse_held(_read(url))


def parse_held(text: str) -> list[str]:
    held = {"drafthouse_sequences": ("running", "waiting"), "drafthouse_kv_blocks": ("used",)}
    return [
        f"{sample.value:.0f} {sample.labels['state']} {family.name.removeprefix('drafthouse_').replace('_', ' ')}"
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.value and sample.labels.get("state") in held.get(family.name, ())
    ]


def _read(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as reply:
        text: str = reply.read().decode()
        return text


def parse_steps(text: str) -> Steps:
    """From the exposition format of Prometheus."""
    values = {
        (sample.labels["phase"], sample.name.removeprefix(_STEP)): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name in (f"{_STEP}_count", f"{_STEP}_sum")
    }
    prompt_num, prompt_seconds = values["prefill", "_count"], values["prefill", "_sum"]
    num = sum(value for (_, suffix), value in values.items() if suffix == "_count")
    seconds = sum(value for (_, suffix), value in values.items() if suffix == "_sum")
    return Steps(int(num), seconds, int(prompt_num), prompt_seconds)
