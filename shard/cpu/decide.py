"""The compiled functions of decide.c as functions of tensors: what verify.py and states.py compute, on CPU.

Integers are int64.
"""

import ctypes
from functools import cache

import torch
from torch import Tensor

from shard.cpu.kernels import cpu_kernels
from shard.cpu.slots import SlotsStruct

_long, _pointer = ctypes.c_long, ctypes.c_void_p


class _Put(ctypes.Structure):
    _fields_ = [
        *((name, _pointer) for name in ("slots", "tokens", "cells", "drafts", "parents", "num_drafts", "stops")),
        *((name, _long) for name in ("n", "rows", "num_stops")),
    ]


class _Decided(ctypes.Structure):
    _fields_ = [
        *((name, _pointer) for name in ("token_ids", "path", "num_emitted", "num_accepted", "finished")),
        ("depth", _long),
    ]


class DecisionKernels:
    def __init__(self, library: ctypes.CDLL) -> None:
        kept = ctypes.POINTER(SlotsStruct)
        self._decide = library.decide
        self._decide.argtypes = [kept, ctypes.POINTER(_Put), ctypes.POINTER(_Decided)]
        self._append = library.append
        self._append.argtypes = [kept, *[_pointer] * 4, *[_long] * 2]
        self._set_drafts = library.set_drafts
        self._set_drafts.argtypes = [kept, *[_pointer] * 4, _long]

    def decide(
        self,
        kept: SlotsStruct,
        stop_token_ids: Tensor,
        *,
        slots: Tensor,
        token_ids: Tensor,
        cells: Tensor,
        drafts: Tensor,
        parents: Tensor,
        num_drafts: Tensor,
        depth: int,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Verifies as verify.py does, with token_ids [M] put after rows by cells [S, R], and appends; the other tensors
        are named as there, stop_token_ids [slots, E]. Returns what a Decision of `depth` begins with, then
        `finished`."""
        # Kept alive until the call is over.
        held = [
            tensor.contiguous() for tensor in (slots, token_ids, cells, drafts, parents, num_drafts, stop_token_ids)
        ]
        num_sequences = len(slots)
        tokens, path = torch.empty(2, num_sequences, depth, dtype=torch.int64)
        num_emitted, num_accepted, finished = torch.empty(3, num_sequences, dtype=torch.int64)
        decided = tokens, path, num_emitted, num_accepted, finished
        self._decide(
            kept,
            _Put(*(tensor.data_ptr() for tensor in held), *cells.shape, stop_token_ids.shape[1]),
            _Decided(*(tensor.data_ptr() for tensor in decided), depth),
        )
        return decided

    def append(
        self, kept: SlotsStruct, slots: Tensor, token_ids: Tensor, num_emitted: Tensor, finished: Tensor
    ) -> None:
        """As SequenceStates.append; `kept` are its tensors, changed in place."""
        num_emitted = num_emitted.contiguous()
        pointers = (tensor.data_ptr() for tensor in (slots, token_ids, num_emitted, finished))
        self._append(kept, *pointers, len(slots), token_ids.stride(0))

    def set_drafts(self, kept: SlotsStruct, slots: Tensor, tree: tuple[Tensor, Tensor, Tensor]) -> None:
        """As SequenceStates.set_drafts."""
        assert tree[0].shape == tree[1].shape == (len(slots), kept.tree_size)
        held = [tensor.contiguous() for tensor in (slots, *tree)]
        self._set_drafts(kept, *(tensor.data_ptr() for tensor in held), len(slots))


@cache
def decision_kernels() -> DecisionKernels | None:
    """None where nothing can be compiled; who calls has a path of torch operations."""
    kernels = cpu_kernels()
    return DecisionKernels(kernels.library) if kernels else None
