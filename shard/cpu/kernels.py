"""The compiled kernels as functions of tensors. Owns loading them and what each asks of its arguments' layout.

They are for bfloat16 on CPU; who calls them has a path of torch operations for everything else.
"""

import ctypes
import logging
from functools import cache
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from shard.attention_spec import AttentionSpec
from shard.cpu.build import BuildError, built_library

log = logging.getLogger(__name__)

NAME: Final = "drafthouse-c"

# What linear.c takes of a row at once; its scratch holds whole blocks.
_LINEAR_BLOCK = 16

# Longer than any sequence.
_NO_WINDOW = 1 << 40

_long, _float, _pointer = ctypes.c_long, ctypes.c_float, ctypes.c_void_p


class CpuKernels:
    """Tensors are bfloat16 and contiguous where nothing else is said; nothing is checked twice on the hot path."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._rms_norm = library.rms_norm
        self._rms_norm.argtypes = [_pointer, _pointer, _pointer, _long, _long, _float]
        self._silu_mul = library.silu_mul
        self._silu_mul.argtypes = [_pointer, _pointer, _long, _long]
        self._rotate = library.rotate
        self._rotate.argtypes = [_pointer, _pointer, _pointer, _long, _long, _long, _long]
        self._linear = library.linear
        self._linear.argtypes = [_pointer] * 5 + [_long] * 3
        self._attend = library.attend
        self._attend.argtypes = [_pointer] * 9 + [_long] * 10 + [_float] * 2

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """x [N, size] over the last dimension."""
        out = torch.empty_like(x)
        self._rms_norm(x.data_ptr(), weight.data_ptr(), out.data_ptr(), x.shape[0], x.shape[1], eps)
        return out

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        """[N, 2 * width], gate first -> [N, width]."""
        num_rows, width = gate_up.shape[0], gate_up.shape[1] // 2
        out = gate_up.new_empty((num_rows, width))
        self._silu_mul(gate_up.data_ptr(), out.data_ptr(), num_rows, width)
        return out

    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor) -> None:
        """x [N, heads, dim] in place, heads contiguous, rows with any stride; cos and sin [N, 1, dim], sin signed."""
        num_rows, num_heads, dim = x.shape
        self._rotate(x.data_ptr(), cos.data_ptr(), sin.data_ptr(), num_rows, x.stride(0), num_heads, dim)

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """x [N, in], weight [out, in], bias [out] -> [N, out]; summed in float32, rounded once.

        ValueError: x is not what the weight asks for. Unlike the other shapes this one comes from a caller's tensor.
        """
        num_rows, num_inputs = x.shape
        if num_inputs != weight.shape[1] or x.dtype != torch.bfloat16 or not x.is_contiguous():
            message = f"{x.dtype} [{num_rows}, {num_inputs}] with strides {x.stride()}"
            raise ValueError(f"a product needs contiguous bfloat16 rows of {weight.shape[1]}, not {message}")
        out = x.new_empty((num_rows, weight.shape[0]))
        scratch = x.new_empty((num_rows, -(-num_inputs // _LINEAR_BLOCK) * _LINEAR_BLOCK), dtype=torch.float32)
        self._linear(
            x.data_ptr(),
            weight.data_ptr(),
            None if bias is None else bias.data_ptr(),
            out.data_ptr(),
            scratch.data_ptr(),
            num_rows,
            num_inputs,
            weight.shape[0],
        )
        return out

    def attend(
        self,
        qkv: Tensor,
        pages: Tensor,
        steps: "PagedSteps",
        *,
        out: Tensor,
        step_rows: Tensor,
        block_size: int,
        spec: AttentionSpec,
    ) -> None:
        """Writes the rows of `steps` in `out` [N, q heads, dim] and their keys and values in `step_rows`.

        step_rows is [at least N, 2 * kv heads, dim]; qkv is [N, q heads + 2 * kv heads, dim], rotated; pages are a
        layer's, [K or V, block, kv head, place, dim].
        """
        num_heads, dim = out.shape[1], out.shape[2]
        self._attend(
            qkv.data_ptr(),
            pages.data_ptr(),
            out.data_ptr(),
            step_rows.data_ptr(),
            *steps.pointers,
            *steps.sizes,
            pages.numel() // 2,
            num_heads,
            (qkv.shape[1] - num_heads) // 2,
            dim,
            block_size,
            _NO_WINDOW if spec.window is None else spec.window,
            spec.scale,
            spec.softcap or 0.0,
        )


class PagedSteps:
    """Where the sequences of a step stand: their block tables, rows and committed lengths, as the kernel reads them."""

    def __init__(
        self,
        *,
        tables: list[list[int]],
        first_rows: list[int],
        num_rows: list[int],
        lengths: Tensor,
        ancestors: Tensor,
    ) -> None:
        """`lengths` [S] int64: positions committed before each sequence's first row. `ancestors` [S or 1, R, R] bool:
        row j of a sequence is row r or lies on its way from the first row."""
        width = max(len(table) for table in tables)
        ancestors = ancestors.contiguous()
        # Kept alive with the addresses that point into them.
        self._tensors = (
            torch.tensor([table + [0] * (width - len(table)) for table in tables], dtype=torch.int32),
            torch.tensor(first_rows, dtype=torch.int32),
            torch.tensor(num_rows, dtype=torch.int32),
            lengths.to(torch.int32),
            ancestors,
        )
        self.pointers = tuple(tensor.data_ptr() for tensor in self._tensors)
        most_rows = ancestors.shape[1]
        self.sizes = (len(tables), width, 0 if len(ancestors) == 1 else most_rows * most_rows, most_rows)


def kernels_for(dtype: torch.dtype, device: torch.device) -> CpuKernels | None:
    return cpu_kernels() if dtype == torch.bfloat16 and device.type == "cpu" else None


@cache
def cpu_kernels() -> CpuKernels | None:
    """The kernels, compiled at the first call; None (and one warning) where that is not possible."""
    try:
        # The kernels share the threads of torch's own OpenMP library, so its functions must be found first.
        ctypes.CDLL(_openmp_library(), mode=ctypes.RTLD_GLOBAL)
        return CpuKernels(ctypes.CDLL(str(built_library())))
    except (BuildError, OSError) as error:
        log.warning("serving without compiled CPU kernels, which is slower: %s", error)
        return None


def _openmp_library() -> str:
    """The OpenMP library that this process has loaded with torch."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        path = line.split(maxsplit=5)[-1]
        if Path(path).name.startswith(("libgomp", "libiomp5", "libomp")):
            return path
    raise BuildError("torch has loaded no OpenMP library")
