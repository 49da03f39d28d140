"""The whole service on the GPU, with and without speculation, and a model of 7B's size with good Medusa heads."""

import asyncio
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

_ROOT = Path(__file__).parents[2]
_CONCURRENCY = (1, 8, 32, 128)
_PAIRS, _NEW_TOKENS = 2, 96
_THREADS = 4


@dataclass(frozen=True, slots=True)
class ServiceSpeed:
    """Tokens per second of all requests together, medians of the runs, and drafts checked per step of a request."""

    at_once: int
    off: float
    on: float
    drafts_per_step: float


def service_speeds(say: Callable[[str], None]) -> list[ServiceSpeed]:
    """None, and why on `say`, if the service does not run with the packages that are installed."""
    try:
        from bench.errors import BenchError
        from bench.never_slower.config import NeverSlowerConfig
        from bench.never_slower.report import AUTO, OFF
        from bench.never_slower.run import measure
        from bench.prompts import RANDOM
    except (ImportError, RuntimeError) as error:
        say(f"the service was not measured: {error}")
        return []
    with tempfile.TemporaryDirectory() as folder:
        _write_model(folder)
        config = NeverSlowerConfig(
            model_id=folder,
            threads=_THREADS,
            speculate=None,
            pairs=_PAIRS,
            most_pairs=_PAIRS,
            concurrency=_CONCURRENCY,
            workloads=(RANDOM,),
            new_tokens=_NEW_TOKENS,
            flags=(),
            fixed=(),
        )
        try:
            points = asyncio.run(measure(config, say))
        except BenchError as error:
            say(f"the service was not measured: {error}")
            return []
    return [
        ServiceSpeed(
            at_once,
            off=statistics.median(ways[OFF].speeds),
            on=statistics.median(ways[AUTO].speeds),
            drafts_per_step=statistics.fmean(ways[AUTO].drafts_per_step),
        )
        for (_, at_once), ways in points.items()
    ]


def _write_model(folder: str) -> None:
    """In a process of its own, which takes the memory with it."""
    subprocess.run([sys.executable, "-m", "bench.gpu.oracle_model", folder], cwd=_ROOT, check=True)
