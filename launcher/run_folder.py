"""The private folder of one launch, for pipes, sockets and what else its processes share. It is gone at the launch's
end; that of a launcher that was killed is removed by the next one.

Must not know what is in it.
"""

import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

_PREFIX = "drafthouse-"
# Held while the launcher lives: the kernel lets go however it dies. Folders without one are only just being made.
_LOCK = "launcher.lock"


@contextmanager
def run_folder() -> Iterator[Path]:
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        # Another launcher may be removing it, or it is none of ours.
        with suppress(OSError):
            _remove_if_abandoned(folder)
    folder, lock = _make()
    with lock:
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _make() -> tuple[Path, TextIO]:
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX))  # mode 0700
        lock = (folder / _LOCK).open("w")
        # Where files cannot be locked, nobody else finds this one abandoned.
        with suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
        # Else another launcher had it first, and has removed it as abandoned.
        if (folder / _LOCK).exists():
            return folder, lock
        lock.close()


def _remove_if_abandoned(folder: Path) -> None:
    """Raises OSError where it is not."""
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
        return
    with (folder / _LOCK).open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
