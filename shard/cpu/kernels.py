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
from shard.cpu.build import BuildError, loaded_library
from shard.cpu.packing import Packing
from shard.cpu.spans import PagedSpans, SpansStruct
from shard.cpu.tiles import LEAST_ROWS, has_tiles
from shard.gate import Gate

log = logging.getLogger(__name__)

NAME: Final = "drafthouse-c"

# `Gate` of linear.h: their places.
GATES = (None, "silu", "gelu_tanh")

# Longer than any sequence.
_NO_WINDOW = 1 << 40

_long, _float, _pointer = ctypes.c_long, ctypes.c_float, ctypes.c_void_p


class _CacheStruct(ctypes.Structure):
    """`Cache` of attention.h."""

    _fields_ = [
        *((name, _pointer) for name in ("pages", "step_rows")),
        *((name, _long) for name in ("value_offset", "heads", "kv_heads", "dim", "block_size", "window")),
        *((name, _float) for name in ("scale", "softcap")),
    ]


class CpuKernels:
    """Tensors are bfloat16 and contiguous where nothing else is said; nothing is checked twice on the hot path."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.library = library
        self._rms_norm = library.rms_norm
        self._rms_norm.argtypes = [_pointer, _pointer, _pointer, _long, _long, _float]
        self._silu_mul = library.silu_mul
        self._silu_mul.argtypes = [_pointer, _pointer, _long, _long]
        self._rotate = library.rotate
        self._rotate.argtypes = [_pointer, _pointer, _pointer, _long, _long, _long, _long]
        self._linear = library.linear
        self._linear.argtypes = [_pointer] * 8 + [_long] * 4
        self._attend = library.attend
        structs = ctypes.POINTER(_CacheStruct), ctypes.POINTER(SpansStruct)
        self._attend.argtypes = [*structs, *[_pointer] * 4, *[_long] * 2]
        self._find_slots = library.find_slots
        self._find_slots.argtypes = [ctypes.POINTER(SpansStruct), _long, _pointer]
        self._commit = library.commit
        self._commit.argtypes = [*[_pointer] * 2, ctypes.POINTER(SpansStruct), *[_pointer] * 3, *[_long] * 9]
        self.run_halves = library.run_halves
        self.run_halves.argtypes = [_pointer] * 3 + [_long] * 2
        self._bytes_of_row = library.bytes_of_row
        self._bytes_of_row.argtypes, self._bytes_of_row.restype = [_long], _long
        self.packing = Packing(library)
        self._has_tiles = has_tiles() and self.packing.together == 1

    def arithmetic(self, *, is_int8: bool) -> str:
        """What is multiplied where weights are int8, or not; sums are float32."""
        if is_int8 and self.packing.multiplies_integers:
            multiplied = "integers of 16 and 8 bits"
        else:
            multiplied = "float32" if self.packing.together == 1 else "pairs of bfloat16"
        return multiplied + (f", tiles of bfloat16 from {LEAST_ROWS} rows on" if self._has_tiles else "")

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

    def room_for_integers(self, num_rows: int, num_inputs: int) -> Tensor:
        """Bytes for so many rows of inputs of weights in int8."""
        return torch.empty(num_rows * self._bytes_of_row(num_inputs), dtype=torch.uint8)

    def leaves_to_tiles(self, num_rows: int) -> bool:
        """Whether the library's product, of the unpacked weight, is the faster one for so many rows."""
        return self._has_tiles and num_rows >= LEAST_ROWS

    def linear(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        *,
        num_outputs: int,
        scales: Tensor | None = None,
        gate: Gate | None = None,
        dtype: torch.dtype = torch.bfloat16,
    ) -> Tensor:
        """x [N, in], packed weight, scales (if int8) and bias -> [N, num_outputs], summed in float32; `dtype` is that
        or bfloat16. With a gate weight, scales and bias are `gated`, and its product with the rest comes out, in
        bfloat16.

        ValueError: x is not what the weight asks for. Unlike the other shapes this one comes from a caller's tensor.
        """
        num_rows, num_inputs = x.shape
        if (
            self.packing.num_inputs(num_inputs, is_int8=scales is not None) != weight.shape[1]
            or x.dtype != torch.bfloat16
            or not x.is_contiguous()
        ):
            message = f"{x.dtype} [{num_rows}, {num_inputs}] with strides {x.stride()}"
            raise ValueError(f"a product needs contiguous bfloat16 rows of {weight.shape[1]}, not {message}")
        wide_x = torch.empty(x.shape, dtype=torch.float32)
        wide = torch.empty((num_rows, self.packing.num_outputs(num_outputs)), dtype=torch.float32)
        integers = None if scales is None else self.room_for_integers(num_rows, num_inputs)
        out = x.new_empty((num_rows, num_outputs)) if dtype == torch.bfloat16 else None
        self._linear(
            x.data_ptr(),
            weight.data_ptr(),
            None if scales is None else scales.data_ptr(),
            None if bias is None else bias.data_ptr(),
            None if out is None else out.data_ptr(),
            wide_x.data_ptr(),
            wide.data_ptr(),
            None if integers is None else integers.data_ptr(),
            num_rows,
            num_inputs,
            num_outputs,
            GATES.index(gate),
        )
        return wide[:, :num_outputs] if out is None else out

    def find_slots(self, spans: PagedSpans, block_size: int) -> Tensor:
        """Block id * block_size + place in the block of each row, [N] int64."""
        out = torch.empty_like(spans.positions)
        self._find_slots(spans.struct, block_size, out.data_ptr())
        return out

    def commit(
        self, steps: Tensor, pages: Tensor, spans: PagedSpans, path: Tensor, num_kept: Tensor, slots: Tensor
    ) -> None:
        """Copies of each of the first S spans the step rows named by the first `num_kept` [S] of its `path` [S, R], all
        layers, to their physical `slots` [N]. Integers are int64.

        steps is [layers, max rows, 2 * kv heads, dim], pages [layers, K or V, block, kv head, place, dim].
        """
        self._commit(
            steps.data_ptr(),
            pages.data_ptr(),
            spans.struct,
            path.data_ptr(),
            num_kept.data_ptr(),
            slots.data_ptr(),
            len(path),
            path.stride(0),
            len(steps),
            steps.shape[1],
            pages.stride(0),
            pages.stride(1),
            pages.shape[3],
            pages.shape[5],
            pages.shape[4],
        )

    def attend(
        self,
        qkv: Tensor,
        pages: Tensor,
        spans: PagedSpans,
        *,
        out: Tensor,
        step_rows: Tensor,
        physical_slots: Tensor,
        block_size: int,
        spec: AttentionSpec,
    ) -> None:
        """Writes out [N, q heads, dim], and the rows' keys and values to `step_rows` or to the pages.

        The first rows of the step, as many as `spans` says, go to step_rows [at least so many, 2 * kv heads, dim], the
        others to their physical slots [N] int64. qkv is [N, q heads + 2 * kv heads, dim], rotated; pages are a layer's,
        [K or V, block, kv head, place, dim].
        """
        num_rows, num_heads, dim = out.shape
        wide = torch.empty(2 * out.numel(), dtype=torch.float32)
        cache = _CacheStruct(
            pages.data_ptr(),
            step_rows.data_ptr(),
            pages.numel() // 2,
            num_heads,
            (qkv.shape[1] - num_heads) // 2,
            dim,
            block_size,
            window_of(spec),
            spec.scale,
            spec.softcap or 0.0,
        )
        self._attend(
            cache,
            spans.struct,
            qkv.data_ptr(),
            out.data_ptr(),
            wide.data_ptr(),
            physical_slots.data_ptr(),
            num_rows,
            spans.num_step_rows,
        )


def window_of(spec: AttentionSpec) -> int:
    """How many positions a row sees."""
    return _NO_WINDOW if spec.window is None else spec.window


def kernels_for(dtype: torch.dtype, device: torch.device) -> CpuKernels | None:
    return cpu_kernels() if dtype == torch.bfloat16 and device.type == "cpu" else None


@cache
def cpu_kernels() -> CpuKernels | None:
    """The kernels, compiled at the first call; None (and one warning) where that is not possible."""
    try:
        # The kernels share the threads of torch's own OpenMP library, so its functions must be found first.
        ctypes.CDLL(_openmp_library(), mode=ctypes.RTLD_GLOBAL)
        return CpuKernels(loaded_library())
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
