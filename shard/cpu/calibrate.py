"""The compiled functions of calibrate.c as functions of tensors: what calibration.py and Drafter.counts compute on CPU.

Integers are int64, other numbers float32.
"""

import ctypes
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from shard.cpu.kernels import cpu_kernels

_long, _float, _pointer = ctypes.c_long, ctypes.c_float, ctypes.c_void_p


class Sums(NamedTuple):
    """A ratio of two sums, changed in place, with what it began with and how it forgets (calibration.py)."""

    above: Tensor
    below: Tensor
    prior: Tensor
    kept: float
    weight: float


class OwnSums(NamedTuple):
    """Sums by slot, changed in place, and how they forget."""

    right: Tensor
    said: Tensor
    kept: float
    weight: float


class _Ratio(ctypes.Structure):
    _fields_ = [
        *((name, _pointer) for name in ("above", "below", "prior")),
        ("size", _long),
        *((name, _float) for name in ("kept", "weight")),
    ]

    @classmethod
    def of(cls, sums: Sums) -> "_Ratio":
        above, below, prior, kept, weight = sums
        return cls(above.data_ptr(), below.data_ptr(), prior.data_ptr(), above.numel(), kept, weight)


class _Outcome(ctypes.Structure):
    _fields_ = [
        *((name, _pointer) for name in ("ids", "tokens", "known")),
        *((name, _long) for name in ("n", "depth", "width", "stride")),
    ]


class _Own(ctypes.Structure):
    _fields_ = [
        *((name, _pointer) for name in ("right", "said")),
        *((name, _float) for name in ("kept", "weight")),
    ]

    @classmethod
    def of(cls, own: OwnSums) -> "_Own":
        return cls(own.right.data_ptr(), own.said.data_ptr(), own.kept, own.weight)


class _Checks(ctypes.Structure):
    _fields_ = [
        *((name, _pointer) for name in ("parents", "path", "accepted", "checked")),
        *((name, _long) for name in ("n", "rows", "stride")),
    ]


class CalibrationKernels:
    def __init__(self, library: ctypes.CDLL) -> None:
        of_all = ctypes.POINTER(_Ratio), ctypes.POINTER(_Outcome)
        self._observe_heads = library.observe_heads
        self._observe_heads.argtypes = [*of_all, _pointer]
        self._observe_lookup = library.observe_lookup
        self._observe_lookup.argtypes = [*of_all, _pointer, _pointer, ctypes.POINTER(_Own)]
        of_sums = ctypes.POINTER(_Ratio), ctypes.POINTER(_Own)
        self._estimate_lookup = library.estimate_lookup
        self._estimate_lookup.argtypes = [*of_sums, *[_pointer] * 3, *[_long] * 2, _float]
        self._count_drafts = library.count_drafts
        self._count_drafts.argtypes = [ctypes.POINTER(_Checks), *[_pointer] * 3, *[_long] * 3]

    def observe_heads(self, sums: Sums, ids: Tensor, probabilities: Tensor, tokens: Tensor, num_known: Tensor) -> None:
        """ids and probabilities [S, H, W]; of tokens [S, R] the first num_known [S] are true."""
        ids, probabilities, num_known = ids.contiguous(), probabilities.contiguous(), num_known.contiguous()
        outcome = _Outcome(ids.data_ptr(), tokens.data_ptr(), num_known.data_ptr(), *ids.shape, tokens.stride(0))
        self._observe_heads(_Ratio.of(sums), outcome, probabilities.data_ptr())

    def observe_lookup(
        self, sums: Sums, own: OwnSums, ids: Tensor, matches: Tensor, slots: Tensor, tokens: Tensor, num_known: Tensor
    ) -> None:
        """ids [S, K], matches and slots [S]; of tokens [S, R] the first num_known [S] are true."""
        ids, matches, slots, num_known = (tensor.contiguous() for tensor in (ids, matches, slots, num_known))
        outcome = _Outcome(ids.data_ptr(), tokens.data_ptr(), num_known.data_ptr(), *ids.shape, 1, tokens.stride(0))
        self._observe_lookup(_Ratio.of(sums), outcome, matches.data_ptr(), slots.data_ptr(), _Own.of(own))

    def estimate_lookup(self, sums: Sums, own: OwnSums, matches: Tensor, slots: Tensor, *, most: float) -> Tensor:
        """matches and slots [S] -> probabilities [S, K], `most` at most."""
        matches, slots = matches.contiguous(), slots.contiguous()
        out = torch.empty(len(slots), sums.above.shape[1])
        pointers = (tensor.data_ptr() for tensor in (matches, slots, out))
        self._estimate_lookup(_Ratio.of(sums), _Own.of(own), *pointers, *out.shape, most)
        return out

    def count_drafts(
        self,
        methods: Tensor,
        slots: Tensor,
        parents: Tensor,
        path: Tensor,
        num_accepted: Tensor,
        num_checked: Tensor,
        counts: Tensor,
    ) -> None:
        """Adds to counts [S, 2, methods, K], which are contiguous. methods [slots, tree_size]; parents [S, R - 1],
        path [S, D] and the numbers [S] are a verified tree's."""
        parents, num_accepted, num_checked = parents.contiguous(), num_accepted.contiguous(), num_checked.contiguous()
        pointers = (tensor.data_ptr() for tensor in (parents, path, num_accepted, num_checked))
        checks = _Checks(*pointers, len(slots), parents.shape[1] + 1, path.stride(0))
        pointers = (tensor.data_ptr() for tensor in (methods, slots, counts))
        self._count_drafts(checks, *pointers, methods.shape[1], *counts.shape[2:])


@cache
def calibration_kernels() -> CalibrationKernels | None:
    """None where nothing can be compiled; who calls has a path of torch operations."""
    kernels = cpu_kernels()
    return CalibrationKernels(kernels.library) if kernels else None
