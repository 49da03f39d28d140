"""The compiled functions of decide.c as functions of tensors: what sampler.py, verify.py and states.py compute, on CPU.

Integers are int64.
"""

import ctypes
from functools import cache

import torch
from torch import Tensor

from shard.cpu.kernels import cpu_kernels

_long, _pointer = ctypes.c_long, ctypes.c_void_p


class _Checked(ctypes.Structure):
    _fields_ = [
        *(
            (name, _pointer)
            for name in ("target", "drafts", "parents", "num_drafts", "num_tokens", "max_num_tokens", "stops")
        ),
        *((name, _long) for name in ("n", "rows", "num_stops")),
    ]


class _Verdicts(ctypes.Structure):
    _fields_ = [(name, _pointer) for name in ("token_ids", "path", "num_emitted", "num_accepted", "finished")]


class _States(ctypes.Structure):
    _fields_ = [
        *((name, _pointer) for name in ("texts", "num_tokens", "num_drafts", "finished")),
        ("length", _long),
    ]


class _Pending(ctypes.Structure):
    _fields_ = [*((name, _pointer) for name in ("ids", "parents", "counts")), ("size", _long)]


class DecisionKernels:
    def __init__(self, library: ctypes.CDLL) -> None:
        self._first_max = library.first_max
        self._first_max.argtypes = [_pointer] * 3 + [_long] * 3
        self._verify = library.verify
        self._verify.argtypes = [ctypes.POINTER(_Checked), ctypes.POINTER(_Verdicts), _pointer]
        self._append = library.append
        self._append.argtypes = [ctypes.POINTER(_States), *[_pointer] * 4, *[_long] * 2]
        self._bound_drafts = library.bound_drafts
        self._bound_drafts.argtypes = [*[_pointer] * 9, _long]
        self._set_drafts = library.set_drafts
        self._set_drafts.argtypes = [ctypes.POINTER(_Pending), *[_pointer] * 4, _long]

    def first_max(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        """float32 [M, N], whose rows are contiguous -> the greatest of each row and its place, the first of equals."""
        num_rows, num_columns = scores.shape
        best, places = torch.empty(num_rows), torch.empty(num_rows, dtype=torch.int64)
        self._first_max(scores.data_ptr(), best.data_ptr(), places.data_ptr(), num_rows, num_columns, scores.stride(0))
        return best, places

    def verify(
        self,
        target: Tensor,
        drafts: Tensor,
        parents: Tensor,
        *,
        num_drafts: Tensor,
        num_tokens: Tensor,
        max_num_tokens: Tensor,
        stop_token_ids: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """What a Verdict holds, in its order."""
        num_sequences, num_rows = target.shape
        # Kept alive until the call is over.
        held = [
            tensor.contiguous()
            for tensor in (target, drafts, parents, num_drafts, num_tokens, max_num_tokens, stop_token_ids)
        ]
        token_ids, path = torch.empty(2, num_sequences, num_rows, dtype=torch.int64)
        num_emitted, num_accepted = torch.empty(2, num_sequences, dtype=torch.int64)
        finished = torch.empty(num_sequences, dtype=torch.bool)
        verdict = token_ids, path, num_emitted, num_accepted, finished
        depth = torch.empty(num_rows, dtype=torch.int64)
        self._verify(
            _Checked(*(tensor.data_ptr() for tensor in held), num_sequences, num_rows, stop_token_ids.shape[1]),
            _Verdicts(*(tensor.data_ptr() for tensor in verdict)),
            depth.data_ptr(),
        )
        return verdict

    def append(
        self,
        states: tuple[Tensor, Tensor, Tensor, Tensor],
        slots: Tensor,
        token_ids: Tensor,
        num_emitted: Tensor,
        finished: Tensor,
    ) -> None:
        """`states`, changed in place: token ids [slots, L]; numbers of tokens and of drafts and whether finished, of
        each slot. The others as in SequenceStates.append."""
        texts = states[0]
        num_emitted = num_emitted.contiguous()
        self._append(
            _States(*(tensor.data_ptr() for tensor in states), texts.shape[1]),
            slots.data_ptr(),
            token_ids.data_ptr(),
            num_emitted.data_ptr(),
            finished.data_ptr(),
            len(slots),
            token_ids.stride(0),
        )

    def bound_drafts(
        self, states: tuple[Tensor, Tensor, Tensor], slots: Tensor, max_drafts: Tensor, max_depth: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`states`: of each slot how many tokens it has and may have, and whether it is finished. The others as in
        SequenceStates.bound_drafts."""
        held = [slots.contiguous(), max_drafts.contiguous(), max_depth.contiguous()]
        out = [*torch.empty(3, len(slots), dtype=torch.int64)]
        self._bound_drafts(*(tensor.data_ptr() for tensor in (*states, *held, *out)), len(slots))
        num_tokens, drafts, depths = out
        return num_tokens, drafts, depths

    def set_drafts(
        self, pending: tuple[Tensor, Tensor, Tensor], slots: Tensor, tree: tuple[Tensor, Tensor, Tensor]
    ) -> None:
        """`pending`, changed in place, ids and parents [slots, N] and their number [slots]; `tree`: the same of S."""
        size = pending[0].shape[1]
        assert tree[0].shape == tree[1].shape == (len(slots), size)
        held = [tensor.contiguous() for tensor in (slots, *tree)]
        self._set_drafts(
            _Pending(*(tensor.data_ptr() for tensor in pending), size),
            *(tensor.data_ptr() for tensor in held),
            len(slots),
        )


@cache
def decision_kernels() -> DecisionKernels | None:
    """None where nothing can be compiled; who calls has a path of torch operations."""
    kernels = cpu_kernels()
    return DecisionKernels(kernels.library) if kernels else None
