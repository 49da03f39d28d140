"""Owns the tensor-parallel group: its collectives and its life. Knows nothing of models or steps.

A group of one needs no process group and its collectives do nothing, so single-rank code takes the same path.
"""

import os
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import FileStore  # type: ignore[attr-defined]  # public, but in no __all__

from shard.cpu.collectives import SharedMemory, share_memory
from shard.process import MEETING


class TPGroup:
    """The ranks that hold one model together. Collectives are called by all ranks in the same order."""

    def __init__(self, *, rank: int = 0, size: int = 1, shared: SharedMemory | None = None) -> None:
        """`shared`: through what tensors on CPU go, if ranks share memory."""
        self.rank = rank
        self.size = size
        self._shared = shared

    @classmethod
    def init(cls, backend: str, timeout_s: float) -> "TPGroup":
        """Join the group that torchrun's environment describes (RANK, WORLD_SIZE, LOCAL_RANK). Ranks find each other by
        the file that MEETING names, which is new for each group, so that nobody has to listen.

        `backend` is "gloo" on CPU, where ranks that share memory exchange through that, and "nccl" on CUDA. A
        collective that waits longer than `timeout_s` fails.
        """
        rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
        device = shared = None
        if backend == "nccl":
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
            torch.cuda.set_device(device)
        if size > 1:
            timeout, store = timedelta(seconds=timeout_s), FileStore(os.environ[MEETING], size)
            store.set_timeout(timeout)
            dist.init_process_group(
                backend,
                rank=rank,
                world_size=size,
                store=store,
                timeout=timeout,
                device_id=device,
            )
            if backend == "gloo":
                shared = share_memory(timeout_s)
        return cls(rank=rank, size=size, shared=shared)

    @property
    def collectives(self) -> str:
        """By what ranks exchange; nothing where there is one."""
        if self.size == 1:
            return ""
        return "shared-memory" if self._shared is not None else dist.get_backend()

    def all_reduce(self, x: Tensor) -> Tensor:
        """Sum over the ranks, in place; returns x. Every rank ends with the same bits."""
        if shared := self._shared_by(x):
            shared.all_reduce(x)
        elif self.size > 1:
            dist.all_reduce(x)
        return x

    def all_gather(self, x: Tensor) -> Tensor:
        """The x of every rank, in rank order: [size, *x.shape]."""
        if self.size == 1:
            return x.unsqueeze(0)
        out = x.new_empty((self.size, *x.shape))
        if shared := self._shared_by(x):
            shared.all_gather(x.contiguous(), out)
        else:
            # The form that every torch from 2.11 on has without a deprecation warning.
            dist.all_gather(list(out.unbind()), x.contiguous())
        return out

    def broadcast(self, x: Tensor) -> Tensor:
        """Rank 0's x on every rank, in place; returns x."""
        if shared := self._shared_by(x):
            shared.broadcast(x)
        elif self.size > 1:
            dist.broadcast(x, src=0)
        return x

    def _shared_by(self, x: Tensor) -> SharedMemory | None:
        return self._shared if x.device.type == "cpu" else None

    def close(self) -> None:
        """Leave the group. The object is not used afterwards."""
        if self.size > 1:
            dist.destroy_process_group()
