"""The whole service on the GPU, with and without speculation: a model of 7B's size with Medusa heads that know, and the
default model if it is here."""

import asyncio
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from bench.gpu.service_speed import ServiceSpeed
from bench.never_slower.config import NeverSlowerConfig
from bench.never_slower.report import AUTO, OFF, speed_ups
from bench.never_slower.run import measure
from bench.prompts import RANDOM
from bench.say import say
from launcher.default_model import DEFAULT_MODEL_ID, present_gguf

_ROOT = Path(__file__).parents[2]
_CONCURRENCY = (1, 8, 32, 128)
_PAIRS, _NEW_TOKENS = 4, 96
_THREADS = 4
# Of the launcher, beside what every benchmark gives it.
_FLAGS: tuple[str, ...] = ()


def speeds_of_7b() -> list[ServiceSpeed]:
    """BenchError or another where the service does not run."""
    with tempfile.TemporaryDirectory() as folder:
        _write_model(folder)
        return _measure("7B", folder, (RANDOM,))


def speeds_of_default_model() -> list[ServiceSpeed]:
    """None of them where it is not here, and that is said."""
    if present_gguf() is None:
        say(f"{DEFAULT_MODEL_ID} was not measured: it is not here")
        return []
    return _measure(DEFAULT_MODEL_ID, None, ("chat",))


def _measure(name: str, model_id: str | None, workloads: tuple[str, ...]) -> list[ServiceSpeed]:
    config = NeverSlowerConfig(
        model_id=model_id,
        threads=_THREADS,
        speculate=None,
        pairs=_PAIRS,
        most_pairs=_PAIRS,
        concurrency=_CONCURRENCY,
        workloads=workloads,
        new_tokens=_NEW_TOKENS,
        flags=_FLAGS,
        fixed=(),
    )
    points = asyncio.run(measure(config))
    return [
        ServiceSpeed(
            name,
            workload,
            at_once,
            off=statistics.median(points[workload, at_once][OFF].speeds),
            on=statistics.median(points[workload, at_once][AUTO].speeds),
            ratio=ratio.value,
            drafts_per_step=statistics.fmean(points[workload, at_once][AUTO].drafts_per_step),
        )
        for (workload, at_once), ratio in speed_ups(points).items()
    ]


def _write_model(folder: str) -> None:
    """In a process of its own, which takes the memory with it."""
    subprocess.run([sys.executable, "-m", "bench.gpu.oracle_model", folder], cwd=_ROOT, check=True)
