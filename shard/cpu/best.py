"""The compiled functions of best.c as functions of tensors: the best of wide rows of float32."""

import ctypes
from functools import cache

import torch
from torch import Tensor

from shard.cpu.kernels import cpu_kernels

_long, _pointer = ctypes.c_long, ctypes.c_void_p


class BestKernels:
    """Scores are float32 [M, C], whose rows are contiguous."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._first_max = library.first_max
        self._first_max.argtypes = [_pointer] * 3 + [_long] * 3
        self._best_of_rows = library.best_of_rows
        self._best_of_rows.argtypes = [_pointer] * 4 + [_long] * 4

    def first_max(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        """The greatest of each row and its place [M] int64, the first of equals."""
        num_rows, num_columns = scores.shape
        best, places = torch.empty(num_rows), torch.empty(num_rows, dtype=torch.int64)
        self._first_max(scores.data_ptr(), best.data_ptr(), places.data_ptr(), num_rows, num_columns, scores.stride(0))
        return best, places

    def best(self, scores: Tensor, width: int) -> tuple[Tensor, Tensor, Tensor]:
        """Columns int64 and values [M, min(width, C)] of the greatest of each row, best first, equals by the lower
        column; and log(sum(exp)) of each row [M]."""
        num_rows, num_columns = scores.shape
        width = min(width, num_columns)
        columns = torch.empty(num_rows, width, dtype=torch.int64)
        values, log_sums = torch.empty(num_rows, width), torch.empty(num_rows)
        pointers = (tensor.data_ptr() for tensor in (scores, columns, values, log_sums))
        self._best_of_rows(*pointers, num_rows, num_columns, scores.stride(0), width)
        return columns, values, log_sums


@cache
def best_kernels() -> BestKernels | None:
    """None where nothing can be compiled; who calls has a path of torch operations."""
    kernels = cpu_kernels()
    return BestKernels(kernels.library) if kernels else None
