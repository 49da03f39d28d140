"""How long the device takes for what is queued on it without a pause."""

import statistics
import time
from collections.abc import Callable

import torch

_LEAST_S = 0.05
_REPEATS = 5


def captured(run: Callable[[], object]) -> Callable[[], object]:
    """The same as one launch: what it takes on the device, not what Python takes to ask for it."""
    # Kernels are compiled and sizes settled before.
    run()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def seconds(run: Callable[[], object]) -> float:
    """Of one run: the median of means over runs that together take a while."""
    _mean_s(run, 3)
    runs = max(3, int(_LEAST_S / _mean_s(run, 3)))
    return statistics.median(_mean_s(run, runs) for _ in range(_REPEATS))


def _mean_s(run: Callable[[], object], runs: int) -> float:
    torch.cuda.synchronize()
    start_s = time.perf_counter()
    for _ in range(runs):
        run()
    torch.cuda.synchronize()
    return (time.perf_counter() - start_s) / runs
