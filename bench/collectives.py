"""What a sum over ranks takes on a CPU, through shared memory and over gloo: `python -m bench.collectives`.

Ranks are processes of one thread each.
"""

import argparse
import multiprocessing
import os
import statistics
import tempfile
import time

import torch

from shard.distributed import TPGroup
from shard.process import MEETING

_TIMEOUT_S = 60.0
# Numbers: a row of the default model, 8 and 1024 of them.
_SIZES = (576, 8 * 576, 1024 * 576)
_TIMES = 400


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.collectives", description=__doc__)
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4])
    for size in parser.parse_args().ranks:
        spawn = multiprocessing.get_context("spawn")
        with tempfile.TemporaryDirectory() as folder:
            ranks = [spawn.Process(target=_measure, args=(rank, size, f"{folder}/meeting")) for rank in range(size)]
            for process in ranks:
                process.start()
            for process in ranks:
                process.join()


def _measure(rank: int, size: int, meeting: str) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), MEETING: meeting}
    shared = TPGroup.init("gloo", _TIMEOUT_S)
    # Without the memory it is the library's.
    groups = {shared.collectives: shared, "gloo": TPGroup(rank=rank, size=size)}
    for num in _SIZES:
        for name, group in groups.items():
            times_us = sorted(_time_us(group, num) for _ in range(_TIMES))
            if rank == 0:
                worst = times_us[-_TIMES // 100]
                print(
                    f"{size} ranks, {num} float32, {name}: median {statistics.median(times_us):.1f} us, "
                    f"mean {statistics.mean(times_us):.1f}, one in a hundred {worst:.1f}",
                    flush=True,
                )
    shared.close()


def _time_us(group: TPGroup, num: int) -> float:
    x = torch.ones(num)
    begin_s = time.perf_counter()
    group.all_reduce(x)
    return 1e6 * (time.perf_counter() - begin_s)


if __name__ == "__main__":
    main()
