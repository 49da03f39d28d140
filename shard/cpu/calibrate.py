"""The compiled functions of calibrate.c as functions of tensors: what calibration.py computes on CPU, for those who ask
heads. What lookups alone teach is lookup.py's.

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


class RatioStruct(ctypes.Structure):
    _fields_ = [
        *((name, _pointer) for name in ("above", "below", "prior")),
        ("size", _long),
        *((name, _float) for name in ("kept", "weight")),
    ]

    @classmethod
    def of(cls, sums: Sums) -> "RatioStruct":
        above, below, prior, kept, weight = sums
        return cls(above.data_ptr(), below.data_ptr(), prior.data_ptr(), above.numel(), kept, weight)


class _Outcome(ctypes.Structure):
    _fields_ = [
        *((name, _pointer) for name in ("ids", "tokens", "known")),
        *((name, _long) for name in ("n", "depth", "width", "stride")),
    ]


class OwnStruct(ctypes.Structure):
    _fields_ = [
        *((name, _pointer) for name in ("right", "said")),
        *((name, _float) for name in ("kept", "weight")),
    ]

    @classmethod
    def of(cls, own: OwnSums) -> "OwnStruct":
        return cls(own.right.data_ptr(), own.said.data_ptr(), own.kept, own.weight)


class CalibrationKernels:
    def __init__(self, library: ctypes.CDLL) -> None:
        self._observe_heads = library.observe_heads
        self._observe_heads.argtypes = [ctypes.POINTER(RatioStruct), ctypes.POINTER(_Outcome), _pointer]
        of_sums = ctypes.POINTER(RatioStruct), ctypes.POINTER(OwnStruct)
        self._estimate_lookup = library.estimate_lookup
        self._estimate_lookup.argtypes = [*of_sums, *[_pointer] * 3, *[_long] * 2, _float]

    def observe_heads(self, sums: Sums, ids: Tensor, probabilities: Tensor, tokens: Tensor, num_known: Tensor) -> None:
        """ids and probabilities [S, H, W]; of tokens [S, R] the first num_known [S] are true."""
        ids, probabilities, num_known = ids.contiguous(), probabilities.contiguous(), num_known.contiguous()
        outcome = _Outcome(ids.data_ptr(), tokens.data_ptr(), num_known.data_ptr(), *ids.shape, tokens.stride(0))
        self._observe_heads(RatioStruct.of(sums), outcome, probabilities.data_ptr())

    def estimate_lookup(self, sums: Sums, own: OwnSums, matches: Tensor, slots: Tensor, *, most: float) -> Tensor:
        """matches and slots [S] -> probabilities [S, K], `most` at most."""
        matches, slots = matches.contiguous(), slots.contiguous()
        out = torch.empty(len(slots), sums.above.shape[1])
        pointers = (tensor.data_ptr() for tensor in (matches, slots, out))
        self._estimate_lookup(RatioStruct.of(sums), OwnStruct.of(own), *pointers, *out.shape, most)
        return out


@cache
def calibration_kernels() -> CalibrationKernels | None:
    """None where nothing can be compiled; who calls has a path of torch operations."""
    kernels = cpu_kernels()
    return CalibrationKernels(kernels.library) if kernels else None
