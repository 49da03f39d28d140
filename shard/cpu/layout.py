"""The compiled function of layout.c as a function of tensors: what lay_out of shard/layout.py computes, on CPU.

Integers are int64.
"""

import ctypes
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from shard.cpu.kernels import cpu_kernels
from shard.cpu.slots import SlotsStruct

_long, _pointer = ctypes.c_long, ctypes.c_void_p


class LaidOut(NamedTuple):
    """As in StepLayout; on_path means nothing where `width` is 1."""

    token_ids: Tensor
    positions: Tensor
    num_drafts: Tensor
    drafts: Tensor
    parents: Tensor
    on_path: Tensor


class _Planned(ctypes.Structure):
    _fields_ = [
        *((name, _pointer) for name in ("slots", "allowed", "counts", "chunk_slots", "chunk_positions")),
        *((name, _long) for name in ("n", "num_decoding", "width", "num_chunk_rows")),
    ]


class _LaidOut(ctypes.Structure):
    _fields_ = [(name, _pointer) for name in LaidOut._fields]


class LayoutKernels:
    def __init__(self, library: ctypes.CDLL) -> None:
        self._lay_out = library.lay_out
        self._lay_out.argtypes = [ctypes.POINTER(struct) for struct in (SlotsStruct, _Planned, _LaidOut)]

    def lay_out(
        self,
        kept: SlotsStruct,
        slots: Tensor,
        allowed: Tensor,
        counts: Tensor,
        chunk_slots: Tensor,
        chunk_positions: Tensor,
        *,
        num_decoding: int,
        num_step_rows: int,
        width: int,
    ) -> LaidOut:
        """Of sequences in `slots` [S] the first `num_decoding` have `counts` [at least so many] rows, num_step_rows in
        all, `width` at most. The other arguments are named as in RowNumbers, and contiguous."""
        num_sequences, num_rows = len(slots), num_step_rows + len(chunk_slots)
        token_ids, positions = torch.empty(2, num_rows, dtype=torch.int64)
        drafts, parents = torch.empty(2, num_sequences, width - 1, dtype=torch.int64)
        on_path = torch.empty(num_sequences, width, width, dtype=torch.bool)
        out = LaidOut(token_ids, positions, torch.empty_like(slots), drafts, parents, on_path)
        planned = (tensor.data_ptr() for tensor in (slots, allowed, counts, chunk_slots, chunk_positions))
        self._lay_out(
            kept,
            _Planned(*planned, num_sequences, num_decoding, width, len(chunk_slots)),
            _LaidOut(*(tensor.data_ptr() for tensor in out)),
        )
        return out


@cache
def layout_kernels() -> LayoutKernels | None:
    """None where nothing can be compiled; who calls has a path of torch operations."""
    kernels = cpu_kernels()
    return LayoutKernels(kernels.library) if kernels else None
