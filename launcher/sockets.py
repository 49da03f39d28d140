"""Whose the shards' Unix sockets are, where the user chose their place: one launch at a time, and nothing of it stays.

Must not know who listens on them.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from launcher.errors import LaunchError


@contextmanager
def claimed(prefix: str, num_shard: int) -> Iterator[None]:
    """PREFIX-0, PREFIX-1, … are this launch's: a second one would take the sockets of shards that serve, and its router
    would find the shards of the other. LaunchError where that is so, or where nothing can be made there.

    PREFIX.lock stays: who deletes a lock may delete that of the next.
    """
    with ExitStack() as held:
        try:
            # Not through a link that somebody else put there.
            descriptor = os.open(f"{prefix}.lock", os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            lock = held.enter_context(os.fdopen(descriptor))
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Of a launch that was killed.
            _remove(prefix, num_shard)
        except BlockingIOError as error:
            raise LaunchError(
                f"the shards of another launcher are at {prefix}; choose another place with --shard-uds-path"
            ) from error
        except OSError as error:
            raise LaunchError(f"--shard-uds-path {prefix}: {error}") from error
        held.callback(_remove, prefix, num_shard)
        yield


def _remove(prefix: str, num_shard: int) -> None:
    for rank in range(num_shard):
        Path(f"{prefix}-{rank}").unlink(missing_ok=True)
