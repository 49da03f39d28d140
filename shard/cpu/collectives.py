"""The compiled functions of collectives.c as functions of tensors, and how ranks come to share the memory they need.

Must not know what is exchanged. Ranks on several machines share none, nor do those without compiled kernels: who calls
has the library's collectives.
"""

import ctypes
import logging
import mmap
import os
import secrets

import torch
import torch.distributed as dist
from torch import Tensor

from shard.cpu.kernels import cpu_kernels

log = logging.getLogger(__name__)

# `Number` of collectives.c: their places.
SUMMED = (torch.float32, torch.float64, torch.bfloat16, torch.int64)

_NAME, _MARK_BYTES = "drafthouse-ranks", 7

_long, _pointer = ctypes.c_long, ctypes.c_void_p


class RanksStruct(ctypes.Structure):
    """`Ranks` of collectives.c."""

    _fields_ = [
        ("flags", _pointer),
        *((name, _long) for name in ("rank", "size")),
        ("timeout_s", ctypes.c_double),
        *((name, ctypes.c_uint32) for name in ("count", "has_failed")),
    ]


class SharedMemory:
    """A rank's end of memory that all ranks of a group share. Tensors are contiguous, on CPU, and the same size on all.

    A rank that waits longer than the timeout for a part of another one raises RuntimeError; so does who comes later
    then. That a rank died is not noticed before: its parent ends the others.
    """

    def __init__(self, library: ctypes.CDLL, memory: mmap.mmap, *, rank: int, size: int, timeout_s: float) -> None:
        self._memory = memory  # kept alive with its address
        self.struct = RanksStruct(_address(memory), rank, size, timeout_s, 0, 0)
        ranks = ctypes.POINTER(RanksStruct)
        self._sum = library.sum_over_ranks
        self._sum.argtypes = [ranks, _pointer, _long, ctypes.c_int]
        self._gather = library.gather_from_ranks
        self._gather.argtypes = [ranks, _pointer, _pointer, _long]
        self._send = library.send_to_ranks
        self._send.argtypes = [ranks, _pointer, _long]

    def all_reduce(self, x: Tensor) -> None:
        """In place, of one of the dtypes in SUMMED, or of float16."""
        assert x.is_contiguous()
        summed = x.float() if x.dtype == torch.float16 else x
        self._sum(self.struct, summed.data_ptr(), summed.numel(), SUMMED.index(summed.dtype))
        self._check()
        if summed is not x:
            x.copy_(summed)

    def all_gather(self, x: Tensor, out: Tensor) -> None:
        """out: [size, *x.shape]."""
        assert x.is_contiguous()
        self._gather(self.struct, x.data_ptr(), out.data_ptr(), x.nbytes)
        self._check()

    def broadcast(self, x: Tensor) -> None:
        """Rank 0's, in place."""
        assert x.is_contiguous()
        self._send(self.struct, x.data_ptr(), x.nbytes)
        self._check()

    def _check(self) -> None:
        if self.struct.has_failed:
            raise RuntimeError(f"a rank did not come to a collective within {self.struct.timeout_s:g} s")


def share_memory(timeout_s: float) -> SharedMemory | None:
    """Called by all ranks of the default process group; None on all of them where one cannot share.

    The memory has no name: it is gone with the last rank, however that ends.
    """
    rank, size = dist.get_rank(), dist.get_world_size()
    kernels, memory, descriptor, mark = cpu_kernels(), None, -1, 0
    if kernels is not None and rank == 0:
        mark = secrets.randbits(8 * _MARK_BYTES)
        memory, descriptor = _make(shared_bytes(kernels.library, size), mark)
    where = torch.tensor([os.getpid(), descriptor, mark])
    dist.broadcast(where, src=0)
    if kernels is not None and rank > 0:
        memory = _open(shared_bytes(kernels.library, size), *where.tolist())
    can_share = torch.tensor(int(memory is not None))
    dist.all_reduce(can_share, op=dist.ReduceOp.MIN)
    if descriptor >= 0:
        os.close(descriptor)
    if kernels is None or memory is None or not can_share:
        log.warning("ranks share no memory, they exchange over sockets, which is slower")
        return None
    return SharedMemory(kernels.library, memory, rank=rank, size=size, timeout_s=timeout_s)


def shared_bytes(library: ctypes.CDLL, size: int) -> int:
    """What so many ranks share, zero at first."""
    library.shared_bytes.argtypes, library.shared_bytes.restype = [_long], _long
    return int(library.shared_bytes(size))


def _make(num_bytes: int, mark: int) -> tuple[mmap.mmap | None, int]:
    """And its file descriptor, which others open through this process; -1 without."""
    try:
        descriptor = os.memfd_create(_NAME)
    except OSError:
        return None, -1
    try:
        os.ftruncate(descriptor, num_bytes + _MARK_BYTES)
        memory = mmap.mmap(descriptor, num_bytes + _MARK_BYTES)
    except OSError:
        os.close(descriptor)
        return None, -1
    memory[num_bytes:] = mark.to_bytes(_MARK_BYTES)
    return memory, descriptor


def _open(num_bytes: int, pid: int, descriptor: int, mark: int) -> mmap.mmap | None:
    """What rank 0 made. Elsewhere the same numbers may mean another file: name and mark say whether it is that."""
    path = f"/proc/{pid}/fd/{descriptor}"
    try:
        if not os.readlink(path).startswith(f"/memfd:{_NAME}"):
            return None
        with open(path, "r+b") as file:
            memory = mmap.mmap(file.fileno(), num_bytes + _MARK_BYTES)
    except (OSError, ValueError):
        return None
    return memory if int.from_bytes(memory[num_bytes:]) == mark else None


def _address(memory: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))
