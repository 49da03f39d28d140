"""For the launcher's tests: a log to look into, and small programs that stand in for shard and router."""

import io
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from launcher.log_pump import LogPump
from launcher.logs import LogWriter


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
