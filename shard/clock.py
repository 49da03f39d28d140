"""How long something takes on the device: on a GPU by its own clock, because the host is long past it by then."""

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import torch


class Timer(Protocol):
    def running(self) -> AbstractContextManager[None]:
        """Around what is timed."""


class Stopwatch:
    """A Timer that is read on the host."""

    def __init__(self, device: torch.device) -> None:
        self._is_cuda = device.type == "cuda"
        # Nanoseconds, or on a GPU events between the commands that it was given.
        self._marks: tuple[Any, Any] | None = None

    @contextmanager
    def running(self) -> Iterator[None]:
        start = self._mark()
        yield
        self._marks = start, self._mark()

    def ns(self) -> int:
        """0 if it never ran. Waits until the device has come so far."""
        if self._marks is None:
            return 0
        start, end = self._marks
        if self._is_cuda:
            end.synchronize()
            return int(start.elapsed_time(end) * 1e6)
        return int(end - start)

    def _mark(self) -> Any:
        if not self._is_cuda:
            return time.perf_counter_ns()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event
