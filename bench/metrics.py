"""Reads what the service says of itself: the step times in /metrics. Differences of two readings are of interest."""

import urllib.request
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

_STEP = "drafthouse_step_duration_seconds"


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


def read_steps(url: str) -> Steps:
    with urllib.request.urlopen(url, timeout=10) as reply:
        return parse_steps(reply.read().decode())


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
