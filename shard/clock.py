"""How long a step took: on a GPU by its own clock, because the host is long past a step when the device is done."""

import time

import torch


class StepClock:
    """Runs from when it is made until `stop`."""

    def __init__(self, device: torch.device) -> None:
        # Marks between the commands that a GPU was given.
        self._events: list[torch.cuda.Event] = []
        if device.type == "cuda":
            self._events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]  # type: ignore[no-untyped-call]
            self._events[0].record()
        self._start_ns = self._end_ns = time.perf_counter_ns()

    def stop(self) -> None:
        if self._events:
            self._events[1].record()
        self._end_ns = time.perf_counter_ns()

    def duration_ns(self) -> int:
        """Waits until the device has come to `stop`."""
        if not self._events:
            return self._end_ns - self._start_ns
        start, end = self._events
        end.synchronize()
        return int(start.elapsed_time(end) * 1e6)
