"""Whose OUTPUT is: of one run at a time. Must not know what a run keeps there."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trainer.errors import TrainError


@contextmanager
def claimed(work: Path) -> Iterator[None]:
    """Two runs would write one file between each other's lines. TrainError where another one is at work.

    The lock stays: who deletes it may delete that of the next. The kernel lets go of it with the process.
    """
    work.mkdir(parents=True, exist_ok=True)
    with (work / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise TrainError(
                f"another train-medusa is at work in {work}; wait for it, end it, or give another --output"
            ) from error
        yield
