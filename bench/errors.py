"""What stops a benchmark or takes a peer out of it, with a message for the user."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import grpc

from launcher.errors import LaunchError


class BenchError(Exception):
    """The message says what failed and what to do."""


class PeerError(Exception):
    """One peer cannot take part; the rest of the run goes on without it, and the report says why."""

    def __init__(self, peer: str, reason: str) -> None:
        super().__init__(f"{peer}: {reason}")
        self.peer = peer
        self.reason = reason


@contextmanager
def told_to_user() -> Iterator[None]:
    """A failure that has a message is that message and an exit code, no traceback."""
    try:
        yield
    except (BenchError, LaunchError) as error:
        sys.exit(f"bench: {error}")
    except grpc.aio.AioRpcError as error:
        sys.exit(f"bench: the service failed a request: {error.details()} ({error.code().name})")
