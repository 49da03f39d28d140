"""Collectives over shared memory: ranks are threads here, which meet in memory the same way as processes do."""

import mmap
import os
import random
import socket
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from shard.cpu.collectives import SUMMED, SharedMemory, _make, _open, shared_bytes
from shard.cpu.kernels import cpu_kernels

PART_BYTES = 256 << 10
SIZES = [0, 1, 7, 1000, PART_BYTES // 8, PART_BYTES // 8 + 1, PART_BYTES + 3]


def ends(size: int, timeout_s: float = 60.0) -> list[SharedMemory]:
    kernels = cpu_kernels()
    assert kernels is not None
    memory = mmap.mmap(-1, shared_bytes(kernels.library, size))
    assert len(memory) == size * (64 + 2 * PART_BYTES), "parts are of another size"
    return [SharedMemory(kernels.library, memory, rank=rank, size=size, timeout_s=timeout_s) for rank in range(size)]


def on_each(work: Callable[[int], None], size: int) -> list[BaseException]:
    """What ranks fail of."""
    errors: list[BaseException] = []

    def run(rank: int) -> None:
        try:
            work(rank)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors


def drawn(dtype: torch.dtype, num: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-1000, 1000, (num,), generator=generator).to(dtype)


@settings(max_examples=60)
@given(
    size=st.integers(2, 5),
    steps=st.lists(
        st.tuples(st.sampled_from("rgb"), st.sampled_from(SUMMED), st.sampled_from(SIZES)), min_size=1, max_size=12
    ),
    seed=st.integers(0, 1 << 30),
)
def test_ranks_that_come_at_any_time_see_what_each_gave(
    size: int, steps: Sequence[tuple[str, torch.dtype, int]], seed: int
) -> None:
    shared = ends(size)
    # Parts are numbered in 32 bits, which a service runs through in a few weeks.
    for rank, end in enumerate(shared):
        end.struct.count = (1 << 32) - 3
        # A rank's flag begins with the number of its last part.
        end._memory[64 * rank : 64 * rank + 4] = ((1 << 32) - 3).to_bytes(4, "little")
    results: list[list[Tensor]] = [[] for _ in range(size)]

    def work(rank: int) -> None:
        rng = random.Random(seed + rank)
        for index, (kind, dtype, num) in enumerate(steps):
            if rng.random() < 0.3:
                time.sleep(rng.random() * 3e-4)
            x = drawn(dtype, num, seed + 100 * index + rank)
            if kind == "r":
                shared[rank].all_reduce(x)
            elif kind == "b":
                shared[rank].broadcast(x)
            else:
                out = torch.empty(size, num, dtype=dtype)
                shared[rank].all_gather(x, out)
                x = out
            results[rank].append(x)

    assert not on_each(work, size)
    for index, (kind, dtype, num) in enumerate(steps):
        given_parts = torch.stack([drawn(dtype, num, seed + 100 * index + rank) for rank in range(size)])
        wide = given_parts.double() if dtype != torch.int64 else given_parts
        expected = {"r": wide.sum(0).to(dtype), "b": given_parts[0], "g": given_parts}[kind]
        assert all(torch.equal(result[index], expected) for result in results)


def test_sums_are_the_same_bits_on_each_rank() -> None:
    shared, parts = ends(3), torch.randn(3, 5000) * torch.logspace(-8, 8, 5000)
    expected = (parts[0] + parts[1]) + parts[2]
    assert not on_each(lambda rank: shared[rank].all_reduce(parts[rank]), 3)
    assert torch.equal(parts, expected.expand(3, -1))


def test_who_waits_too_long_says_so() -> None:
    shared = ends(2, timeout_s=0.01)
    with pytest.raises(RuntimeError, match=r"did not come to a collective within 0.01 s"):
        shared[0].all_reduce(torch.ones(3))


def test_only_what_rank_0_made_is_shared(tmp_path: Path) -> None:
    memory, descriptor = _make(1000, mark=5)
    assert memory is not None
    pid = os.getpid()
    opened = _open(1000, pid, descriptor, 5)
    assert opened is not None
    memory[7] = 9
    assert opened[7] == 9
    # On another machine the same numbers are another file, shorter or not one that can be shared.
    assert _open(1000, pid, descriptor, 6) is None
    with (tmp_path / "short").open("w+b") as other, socket.socket() as another:
        assert _open(1000, pid, other.fileno(), 5) is None
        assert _open(1000, pid, another.fileno(), 5) is None
    assert _open(1000, pid, 9999, 5) is None
    os.close(descriptor)


@pytest.mark.parametrize("kind", "rgb")
def test_who_comes_too_late_fails_too_and_reads_nothing_wrong(kind: str) -> None:
    shared, num = ends(2, timeout_s=0.3), 5 * PART_BYTES // 4

    def work(rank: int) -> None:
        time.sleep(1.6 * rank)
        x = torch.full((num,), 1.0 + rank)
        if kind == "r":
            shared[rank].all_reduce(x)
        elif kind == "g":
            shared[rank].all_gather(x, torch.empty(2, num))
        else:
            shared[rank].broadcast(x)

    assert [type(error) for error in on_each(work, 2)] == [RuntimeError, RuntimeError]


def test_many_more_ranks_than_cores_get_on() -> None:
    shared = ends(16)

    def work(rank: int) -> None:
        for _ in range(50):
            x = torch.full((100,), float(rank))
            shared[rank].all_reduce(x)
            assert x.eq(120).all()

    assert not on_each(work, 16)
