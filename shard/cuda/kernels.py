"""Whether there are Triton kernels for a device, and which. Must not know how they work.

Triton is imported at the first question about a CUDA device, and never on another: installations for CPU lack it.
"""

import logging
from dataclasses import dataclass
from functools import cache
from subprocess import CalledProcessError
from typing import TYPE_CHECKING, Final

import torch

from shard.cuda.interface import Attend, Best, Commit, Decide, Drafting, LayOut, Multiply, Rows

if TYPE_CHECKING:
    from shard.cuda.graphs import GraphCapture

log = logging.getLogger(__name__)

NAME: Final = "drafthouse-triton"

_DEVICE_TYPE: Final = "cuda"
# Tensor cores multiply neither of the other two; float32 is served in full precision, by ordinary arithmetic.
_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
# Older ones have no bfloat16.
_LEAST_CAPABILITY = (8, 0)
_LEAST_CAPABILITY_OF_FP8 = (8, 9)


@dataclass(frozen=True, slots=True)
class _Kernels:
    attend: Attend
    multiply: Multiply
    rows: Rows
    lay_out: LayOut
    best: Best
    decide: Decide
    commit: Commit
    drafting: type[Drafting]


def attention_for(dtype: torch.dtype, device: torch.device) -> Attend | None:
    kernels = _kernels_for(device, dtype)
    return None if kernels is None else kernels.attend


def multiply_for(dtype: torch.dtype, device: torch.device) -> Multiply | None:
    kernels = _kernels_for(device, dtype)
    return None if kernels is None else kernels.multiply


def rows_for(dtype: torch.dtype, device: torch.device) -> Rows | None:
    kernels = _kernels_for(device, dtype)
    return None if kernels is None else kernels.rows


def layout_for(device: torch.device) -> LayOut | None:
    """For whatever type: rows are laid out in integers."""
    kernels = _kernels_for(device)
    return None if kernels is None else kernels.lay_out


def best_for(dtype: torch.dtype, device: torch.device) -> Best | None:
    kernels = _kernels_for(device, dtype)
    return None if kernels is None else kernels.best


def commit_for(dtype: torch.dtype, device: torch.device) -> Commit | None:
    kernels = _kernels_for(device, dtype)
    return None if kernels is None else kernels.commit


def decide_for(device: torch.device) -> Decide | None:
    kernels = _kernels_for(device)
    return None if kernels is None else kernels.decide


def drafting_for(device: torch.device) -> type[Drafting] | None:
    kernels = _kernels_for(device)
    return None if kernels is None else kernels.drafting


def has_fp8(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether weights, keys and values may be floating-point numbers of 8 bits."""
    is_new = device.type == "cuda" and torch.cuda.get_device_capability(device) >= _LEAST_CAPABILITY_OF_FP8
    return is_new and multiply_for(dtype, device) is not None


def _kernels_for(device: torch.device, dtype: torch.dtype | None = None) -> _Kernels | None:
    """`dtype` None: those that work in integers."""
    return _load(device) if device.type == _DEVICE_TYPE and (dtype is None or dtype in _DTYPES) else None


def capture_for(
    dtype: torch.dtype, device: torch.device, *, least_free: int = 0, most_shared: int = 0
) -> "GraphCapture | None":
    """What steps are captured with, where attention needs nothing of the host. The numbers as GraphCapture says."""
    if device.type != "cuda" or attention_for(dtype, device) is None:
        return None
    from shard.cuda.graphs import GraphCapture

    return GraphCapture(device, least_free=least_free, most_shared=most_shared)


@cache
def _load(device: torch.device) -> _Kernels | None:
    """None, and one warning, where they cannot run."""
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < _LEAST_CAPABILITY:
        log.warning(
            "serving without Triton kernels, which is slower: %s is too old", torch.cuda.get_device_name(device)
        )
        return None
    try:
        from shard.cuda import best, rows
        from shard.cuda.attention import attend
        from shard.cuda.commit import commit
        from shard.cuda.decide import decide
        from shard.cuda.drafter import DraftingKernels
        from shard.cuda.layout import lay_out
        from shard.cuda.product import multiply

        if device.type == "cuda":
            _compile_launcher()
    except (ImportError, RuntimeError, AssertionError, OSError, CalledProcessError) as error:
        log.warning("serving without Triton kernels, which is slower: %s", error)
        return None
    return _Kernels(attend, multiply, rows, lay_out, best, decide, commit, DraftingKernels)


def _compile_launcher() -> None:
    """What Triton launches kernels with, which wants a C compiler: now, and not in the middle of the first step."""
    from triton.runtime import driver

    _ = driver.active.utils
