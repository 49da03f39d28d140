"""One child process: start it, tell whether it lives, stop it. Must not know what the child is for."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from launcher.log_pump import LogPump

_EXEC_CHILD = Path(__file__).with_name("exec_child.py")


def tied_to_parent(command: list[str]) -> list[str]:
    """`command`, to be started by this process, wrapped so that the kernel kills it when this process dies."""
    return [sys.executable, "-I", "-S", str(_EXEC_CHILD), str(os.getpid()), *command]


@contextmanager
def helper(command: tuple[str, ...] | None, environ: Mapping[str, str]) -> Iterator[None]:
    """Runs a command beside what is inside, whatever becomes of it; what it does others do too where it fails."""
    if command is None:
        yield
        return
    process = subprocess.Popen(
        tied_to_parent(list(command)),
        env=dict(environ),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        process_group=0,
    )
    try:
        yield
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """What to run, and how long it may take to end after SIGTERM."""

    name: str
    command: list[str]
    environ: Mapping[str, str]
    grace_s: float


class Child:
    """A started child, leader of a process group of its own so that a terminal's Ctrl-C reaches only the launcher.

    Start it on a thread that lives as long as the launcher: the kernel's "parent died" means that thread.
    """

    def __init__(
        self, spec: ChildSpec, pump: LogPump, on_line: Callable[[str], None], on_end: Callable[[], None] | None = None
    ) -> None:
        self._grace_s = spec.grace_s
        self._process = subprocess.Popen(
            tied_to_parent(spec.command),
            env=dict(spec.environ),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            process_group=0,
        )
        assert self._process.stdout is not None
        # The pump closes its own copy, whenever the last writer is gone.
        pump.add(os.dup(self._process.stdout.fileno()), on_line, on_end)
        self._process.stdout.close()

    def exit_code(self) -> int | None:
        """None while it runs; negative: the number of the signal that ended it."""
        return self._process.poll()

    def stop(self, hurried: Callable[[], bool]) -> bool:
        """SIGTERM, wait, SIGKILL to the group. True when it ended by itself. `hurried` cuts the wait short."""
        if self.exit_code() is not None:
            return True
        self._process.terminate()
        deadline = time.monotonic() + self._grace_s
        while time.monotonic() < deadline and not hurried():
            if self.exit_code() is not None:
                return True
            time.sleep(0.02)
        if self.exit_code() is not None:
            return True
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        return False


def describe_exit(code: int) -> str:
    if code >= 0:
        return f"exited with code {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"
