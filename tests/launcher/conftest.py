"""Helpers for the launcher's tests: a log to look into, and small programs that stand in for shard and router."""

import io
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from launcher.log_pump import LogPump
from launcher.logs import LogWriter
from launcher.options import without_variables


class RecordingLog(LogWriter):
    def __init__(self) -> None:
        self.stream = io.StringIO()
        super().__init__(level="debug", json_output=False, stream=self.stream)

    @property
    def text(self) -> str:
        return self.stream.getvalue()


@pytest.fixture
def log() -> RecordingLog:
    return RecordingLog()


@pytest.fixture
def pump() -> Iterator[LogPump]:
    pump = LogPump()
    yield pump
    pump.close()


@pytest.fixture
def program(tmp_path: Path) -> Callable[[str, str], list[str]]:
    """program(name, source) writes a script and returns the command that runs it."""

    def write(name: str, source: str) -> list[str]:
        path = tmp_path / f"{name}.py"
        path.write_text(source)
        return [sys.executable, "-u", str(path)]

    return write


def wait_until(condition: Callable[[], bool], *, what: str, limit_s: float = 30.0) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {limit_s:g} s for {what}"
        time.sleep(0.02)


def is_running(pid: int) -> bool:
    """A zombie has ended: nobody but its reaper can tell."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return status.rsplit(")", 1)[1].split()[0] not in "ZX"


def clean_environ() -> dict[str, str]:
    return without_variables(os.environ)
