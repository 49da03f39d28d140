"""How long a step took, and making drafts in it: on a GPU by its own clock, because the host is long past a step when
the device is done.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

# Nanoseconds, or on a GPU an event between the commands that it was given.
_Mark = Any


class StepClock:
    """Runs from when it is made until `stop`. To ask for a duration then waits until the device is there."""

    def __init__(self, device: torch.device) -> None:
        self._is_cuda = device.type == "cuda"
        self._start = self._end = self._mark()
        self._proposing: tuple[_Mark, _Mark] | None = None

    @contextmanager
    def proposing(self) -> Iterator[None]:
        """Around the making of drafts for the next step."""
        start = self._mark()
        yield
        self._proposing = start, self._mark()

    def stop(self) -> None:
        self._end = self._mark()

    def duration_ns(self) -> int:
        return _between_ns(self._start, self._end)

    def proposing_ns(self) -> int:
        return _between_ns(*self._proposing) if self._proposing is not None else 0

    def _mark(self) -> _Mark:
        if not self._is_cuda:
            return time.perf_counter_ns()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event


def _between_ns(start: _Mark, end: _Mark) -> int:
    if isinstance(start, torch.cuda.Event):
        end.synchronize()
        return int(start.elapsed_time(end) * 1e6)
    return int(end - start)
