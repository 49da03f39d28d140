"""What this machine's memory gives at the moment: a process that reads a buffer whenever it is asked.

A process of its own, because torch's threads are set once, and the benchmark's own process has no torch.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from bench.config import child_environ
from bench.errors import BenchError
from bench.processes import running

# Two or three tenths of a second in all, for a model whose step takes hundredths.
_PASSES = 9
# A row of the matrix whose product with a vector is one of the two ways to read; 16 KB, the vector stays in the cache.
_ROW = 4096


@contextmanager
def bandwidth_meter(num_bytes: int, threads: int) -> Iterator[Callable[[], float]]:
    """Measures bytes per second at each call. A machine that is shared changes from minute to minute."""
    command = [sys.executable, "-m", "bench.bandwidth", str(num_bytes), str(threads)]
    with (
        tempfile.TemporaryFile() as log,
        running(command, environ=child_environ(threads), log=log, piped=True) as process,
    ):

        def measure() -> float:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(b"\n")
            process.stdin.flush()
            if line := process.stdout.readline():
                return float(line)
            log.seek(0)
            raise BenchError(f"bench.bandwidth failed: {log.read().decode(errors='replace').strip()}")

        # The first reading finds the pages not there yet.
        measure()
        yield measure


def _serve(num_bytes: int, threads: int) -> None:
    """A line on stdout for each on stdin: what passes over a buffer of float32 typically take, by a sum or by a
    matrix-vector product, whichever is faster.

    The buffer is as large as what is to be read in a step, so that a cache large enough to hold it counts as it would.
    The best pass would be the moment in which nobody else used a shared machine's memory; no answer is as short.
    """
    import torch

    torch.set_num_threads(threads)
    matrix = torch.ones(num_bytes // 4 // _ROW, _ROW)
    vector = torch.ones(_ROW)
    for _ in sys.stdin:
        pass_s = min(_typical_s(matrix.sum), _typical_s(lambda: matrix @ vector))
        print(matrix.numel() * 4 / pass_s, flush=True)


def _typical_s(read: Callable[[], object]) -> float:
    times = []
    for _ in range(_PASSES):
        start_s = time.perf_counter()
        read()
        times.append(time.perf_counter() - start_s)
    return statistics.median(times)


if __name__ == "__main__":
    _serve(int(sys.argv[1]), int(sys.argv[2]))
