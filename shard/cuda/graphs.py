"""CUDA graphs as what a captured step is: one launch. Owns their memory: what steps compute with they share, because
only one runs at a time, and each graph has some of its own, of which the driver tells only what is left."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

from shard.cuda.stamps import stamp

Outcome = TypeVar("Outcome")


class GraphCapture:
    """A `shard.captured_steps.Capture`, which leaves `least_free` bytes of the device's memory to others. What graphs
    share grows with the largest of them, to `most_shared` bytes: until then there must be room for that, too."""

    def __init__(self, device: torch.device, *, least_free: int, most_shared: int) -> None:
        self._device = device
        self._least_free = least_free
        self._most_shared = most_shared
        self._shared = 0
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, run: Callable[[], Outcome]) -> tuple[Outcome, Callable[[], None]]:
        graph = torch.cuda.CUDAGraph()
        # Other threads may use the device meanwhile: NCCL has one that watches its work.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            outcome = run()
        return outcome, graph.replay

    def has_room(self) -> bool:
        # What the allocator holds and nobody uses is free: it gives it back before a capture anyway.
        torch.cuda.synchronize(self._device)
        torch.cuda.empty_cache()
        free, _ = torch.cuda.mem_get_info(self._device)
        if self._shared < self._most_shared:
            self._shared = self._shared_bytes()
        return free >= self._least_free + max(0, self._most_shared - self._shared)

    def _shared_bytes(self) -> int:
        """Takes milliseconds: the allocator lists all that it has."""
        segments = torch.cuda.memory_snapshot()  # type: ignore[no-untyped-call]
        return sum(segment["total_size"] for segment in segments if segment["segment_pool_id"] == self._pool)

    def timer(self) -> "StampTimer":
        return StampTimer(self._device)


class StampTimer:
    """Events that a graph records tell no times; the device's clock can be read by a kernel."""

    def __init__(self, device: torch.device) -> None:
        self.marks = torch.zeros(2, dtype=torch.int64, device=device)

    @contextmanager
    def running(self) -> Iterator[None]:
        stamp[1,](self.marks, 0)
        yield
        stamp[1,](self.marks, 1)
