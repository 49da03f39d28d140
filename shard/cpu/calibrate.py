"""The compiled functions of calibrate.c as functions of tensors: what calibration.py computes, on CPU.

Integers are int64, other numbers float32.
"""

import ctypes
from functools import cache
from typing import NamedTuple

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


class CalibrationKernels:
    def __init__(self, library: ctypes.CDLL) -> None:
        of_all = ctypes.POINTER(_Ratio), ctypes.POINTER(_Outcome)
        self._observe_heads = library.observe_heads
        self._observe_heads.argtypes = [*of_all, _pointer]
        self._observe_lookup = library.observe_lookup
        self._observe_lookup.argtypes = [*of_all, _pointer, _pointer, ctypes.POINTER(_Own)]

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
        of_slots = _Own(own.right.data_ptr(), own.said.data_ptr(), own.kept, own.weight)
        self._observe_lookup(_Ratio.of(sums), outcome, matches.data_ptr(), slots.data_ptr(), of_slots)


@cache
def calibration_kernels() -> CalibrationKernels | None:
    """None where nothing can be compiled; who calls has a path of torch operations."""
    kernels = cpu_kernels()
    return CalibrationKernels(kernels.library) if kernels else None
