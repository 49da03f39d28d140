"""GGUF files converted once and kept: a folder of safetensors per (file content, number format) in the user's cache.

The conversion itself is `python -m shard.convert`, a child, because it needs torch and this process has none.
"""

import fcntl
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from launcher.errors import LaunchError
from launcher.logs import LogWriter
from launcher.process import describe_exit, tied_to_parent

# Part of every name in the cache: raised when shard.convert writes something else for the same file.
_CONVERSION = 2
# GGUF is read at the precision that will be served; float64 adds nothing to what a file holds.
_STORED_DTYPE = {"bfloat16": "bfloat16", "float16": "float16", "float32": "float32", "float64": "float32"}


def cache_folder() -> Path:
    """By the XDG base directory specification; an empty variable counts as unset. Raises LaunchError."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "drafthouse"
    except RuntimeError as error:
        raise LaunchError("there is no home folder to keep models in; set XDG_CACHE_HOME") from error


def is_gguf(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"GGUF"


def converted_folder(gguf: Path, dtype: str, log: LogWriter, *, converter: list[str] | None = None) -> Path:
    """The folder with `gguf` as safetensors, converted now if it is not there yet. `converter` replaces the command."""
    with gguf.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    stored_dtype = _STORED_DTYPE[dtype]
    target = cache_folder() / f"{gguf.stem}-{stored_dtype}-{digest[:12]}-v{_CONVERSION}"
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with _locked(target.with_name(target.name + ".lock"), log):
        if not target.is_dir():
            partial = target.with_name(target.name + ".partial")
            shutil.rmtree(partial, ignore_errors=True)  # of a conversion that was killed
            log.info(f"converting {gguf.name} to {stored_dtype}, once: {target}")
            command = converter or [sys.executable, "-m", "shard.convert"]
            command = [*command, "--gguf", str(gguf), "--output", str(partial), "--dtype", stored_dtype]
            try:
                _convert(command, gguf, log)
                _keep(partial)
            except BaseException:
                # The disk may be full of it.
                shutil.rmtree(partial, ignore_errors=True)
                raise
            os.rename(partial, target)
    return target


@contextmanager
def _locked(path: Path, log: LogWriter) -> Iterator[None]:
    """Held by one launcher at a time; the kernel lets go when its holder dies."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("another launcher is converting this model, waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _convert(command: list[str], gguf: Path, log: LogWriter) -> None:
    """Runs the child: its stdout is progress, the last line of its stderr is the reason of a failure."""
    with tempfile.TemporaryFile("w+") as errors:
        code = _run(command, errors, log)
        if code == 0:
            return
        errors.seek(0)
        lines = errors.read().strip().splitlines()
    if code > 0 and lines:
        raise LaunchError(f"{gguf.name} cannot be served: {lines[-1]}")
    hint = "; out of memory?" if code == -signal.SIGKILL else ""
    raise LaunchError(f"{gguf.name} cannot be served: its conversion {describe_exit(code)}{hint}")


def _keep(folder: Path) -> None:
    """Past a power cut: a folder whose files lost their ends would be refused at every later start."""
    for file in folder.iterdir():
        with file.open("rb") as opened:
            os.fsync(opened.fileno())


def _run(command: list[str], errors: TextIO, log: LogWriter) -> int:
    environ = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        tied_to_parent(command),
        env=environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=errors,
        text=True,
    ) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                log.relay("convert", line.rstrip("\n"))
        except BaseException:
            # It would be waited for, and write into a folder that is being removed.
            process.kill()
            raise
    return process.returncode
