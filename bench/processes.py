"""Child processes of the benchmark: they die with it, and their CPU time is read from the kernel."""

import os
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from bench.errors import BenchError
from launcher.process import tied_to_parent
from launcher.readiness import is_healthy

_START_TIMEOUT_S, _STOP_TIMEOUT_S = 300.0, 30.0
_LOG_TAIL_LINES = 15


@contextmanager
def running(
    command: list[str], *, environ: Mapping[str, str], log: IO[bytes], piped: bool = False
) -> Iterator[subprocess.Popen[bytes]]:
    """The started command; on leaving it gets SIGTERM and, much later, SIGKILL.

    `log` takes its output; with `piped` only its stderr, and stdin and stdout are pipes.
    """
    process = subprocess.Popen(
        tied_to_parent(command),
        env=dict(environ),
        stdin=subprocess.PIPE if piped else subprocess.DEVNULL,
        stdout=subprocess.PIPE if piped else log,
        stderr=log,
    )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):
                    pipe.close()


def wait_until_healthy(name: str, process: subprocess.Popen[bytes], port: int, log: IO[bytes]) -> None:
    """BenchError with the end of the log if it ends before, or does not become ready."""
    deadline_s = time.monotonic() + _START_TIMEOUT_S
    while not is_healthy("127.0.0.1", port):
        if process.poll() is not None or time.monotonic() > deadline_s:
            log.seek(0)
            tail = log.read().decode(errors="replace").splitlines()[-_LOG_TAIL_LINES:]
            raise BenchError(f"{name} did not become ready; the end of its log:\n" + "\n".join(tail))
        time.sleep(0.05)


def cpu_seconds(pid: int) -> float:
    """User and system time of a process, in the kernel's ticks of usually 10 ms (proc(5), fields 14 and 15)."""
    # The name in field 2 may hold spaces and brackets.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def child_running(parent: int, module: str) -> int:
    """The process id of the child of `parent` that runs `python -m module`. Raises LookupError."""
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal() and _parent(folder) == parent:
            words = (folder / "cmdline").read_bytes().split(b"\0")
            if [b"-m", module.encode()] in [words[i : i + 2] for i in range(len(words))]:
                return int(folder.name)
    raise LookupError(f"process {parent} has no child that runs the module {module}")


def children(parent: int, *, name: str) -> list[int]:
    """The children of `parent` whose names, as `ps -o comm` has them, begin so."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal() and _parent(folder) == parent:
            with suppress(OSError):
                if (folder / "comm").read_text().startswith(name):
                    found.append(int(folder.name))
    return found


def _parent(folder: Path) -> int | None:
    """None for a process that ended meanwhile."""
    try:
        return int((folder / "stat").read_text().rpartition(") ")[2].split()[1])
    except OSError:
        return None
