"""What this machine's memory gives: `python -m bench.bandwidth BYTES THREADS` reads a buffer again and again.

A process of its own, because torch's threads are set once, and the benchmark's own process has no torch.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable

import torch

from bench.config import child_environ

_REPEATS = 15
# A row of the matrix whose product with a vector is one of the two ways to read; 16 KB, the vector stays in the cache.
_ROW = 4096


def measured_bandwidth(num_bytes: int, threads: int) -> float:
    """Bytes per second, in a child process."""
    command = [sys.executable, "-m", "bench.bandwidth", str(num_bytes), str(threads)]
    output = subprocess.run(command, env=child_environ(threads), check=True, capture_output=True, text=True).stdout
    return float(json.loads(output))


def _read_bandwidth(num_bytes: int, threads: int) -> float:
    """The best of several passes over a buffer of float32, by a sum and by a matrix-vector product.

    The buffer is as large as what is to be read in a step, so that a cache large enough to hold it counts as it would.
    """
    torch.set_num_threads(threads)
    matrix = torch.ones(num_bytes // 4 // _ROW, _ROW)
    vector = torch.ones(_ROW)
    best_s = min(_best_of(matrix.sum), _best_of(lambda: matrix @ vector))
    return matrix.numel() * 4 / best_s


def _best_of(read: Callable[[], torch.Tensor]) -> float:
    times = []
    for _ in range(_REPEATS):
        start_s = time.perf_counter()
        read()
        times.append(time.perf_counter() - start_s)
    return min(times)


if __name__ == "__main__":
    print(json.dumps(_read_bandwidth(int(sys.argv[1]), int(sys.argv[2]))))
