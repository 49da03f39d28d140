"""Whether there are Triton kernels for a device, and which. Must not know how they work.

Triton is imported at the first question about a CUDA device, and never on another: installations for CPU lack it.
"""

import logging
from dataclasses import dataclass
from functools import cache
from subprocess import CalledProcessError
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

import torch
from torch import Tensor

from shard.attention_spec import AttentionSpec
from shard.cuda.spans import DeviceSpans
from shard.gate import Gate

if TYPE_CHECKING:
    from shard.cuda.graphs import GraphCapture
    from shard.speculation import Candidates, DraftTree
    from shard.speculation.memory import Memory
    from shard.speculation.prices import DevicePrices
    from shard.states import SequenceStates

log = logging.getLogger(__name__)

NAME: Final = "drafthouse-triton"

_DEVICE_TYPE: Final = "cuda"
# Tensor cores multiply neither of the other two; float32 is served in full precision, by ordinary arithmetic.
_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
# Older ones have no bfloat16.
_LEAST_CAPABILITY = (8, 0)
_LEAST_CAPABILITY_OF_FP8 = (8, 9)


class Attend(Protocol):
    def __call__(
        self,
        qkv: Tensor,
        pages: Tensor,
        spans: DeviceSpans,
        *,
        out: Tensor,
        step_rows: Tensor,
        block_size: int,
        spec: AttentionSpec,
        rotation: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        """Writes the rows of out [N, q heads, dim] that belong to a span, and step rows' keys and values to step_rows.

        qkv is [N, q heads + 2 * kv heads, dim], rotated; or not, and without direct rows, and is by `rotation`: cosines
        and signed sines [N, 1, dim], as `shard.layers.rotary` has them. step_rows [at least the step rows,
        2 * kv heads, dim]; pages are a layer's, [K or V, block, kv head, place, dim], and hold the keys and values of
        direct rows already.
        """


class Multiply(Protocol):
    def __call__(
        self,
        x: Tensor,
        weight: Tensor,
        scales: Tensor | None,
        bias: Tensor | None,
        dtype: torch.dtype,
        gate: Gate | None = None,
    ) -> Tensor:
        """x [N, in] times a weight [out, in] of x's type, or of 8 bits and then times scales [out] float32, and
        bias [out]: [N, out], summed in float32 and rounded to `dtype`. With a gate act(first half) * second half of
        that, [N, out / 2]."""


class Rows(Protocol):
    """What lies between a layer's products, and the rotation that a step's layers share."""

    def rms_norm(self, x: Tensor, factor: Tensor, eps: float, added: Tensor | None = None) -> Tensor:
        """x / sqrt(mean(x²) + eps) * factor of x [N, size], which becomes x + added before."""

    def rotation(
        self, positions: Tensor, frequencies: Tensor, scale: float, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """Cosines and signed sines [N, 1, dim] of `dtype`, times a scale, as `shard.layers.rotary` has them: of
        positions [N] times frequencies [dim / 2] float32."""

    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor) -> None:
        """Heads x [N, heads, dim] in place, by cos and sin [N, 1, dim] as `shard.layers.rotary` has them."""

    def gate_mul(self, gate_up: Tensor, gate: Gate) -> Tensor:
        """act(first half) * second half of gate_up [N, 2 * width]."""


class LaidOut(NamedTuple):
    """As in StepLayout; on_path is true where R is 1. `spans` are over the block tables of all slots."""

    token_ids: Tensor
    positions: Tensor
    num_drafts: Tensor
    drafts: Tensor
    parents: Tensor
    on_path: Tensor
    spans: DeviceSpans


class LayOut(Protocol):
    def __call__(
        self,
        states: "SequenceStates",
        *,
        slots: Tensor,
        allowed: Tensor,
        first_rows: Tensor,
        num_rows: Tensor,
        num_step_rows: int,
        width: int,
    ) -> LaidOut:
        """Decoding sequences in `slots` [S] with num_rows [S] from first_rows [S] on, num_step_rows in all, `width` at
        most. The tensors are named as in RowNumbers, and contiguous."""


class Best(Protocol):
    """Of wide rows; compared in float32, equals by the lower column, what is not a number as -inf."""

    def first_max(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        """The greatest of each row of scores [M, C] and its column, [M]."""

    def best(self, scores: Tensor, width: int) -> tuple[Tensor, Tensor, Tensor]:
        """What `shard.medusa.best.Best` is made of; the log-sum-exp is float32."""


class Decide(Protocol):
    def __call__(
        self,
        states: "SequenceStates",
        *,
        slots: Tensor,
        token_ids: Tensor,
        cells: Tensor,
        drafts: Tensor,
        parents: Tensor,
        on_path: Tensor | None,
        num_drafts: Tensor,
        depth: int,
    ) -> Tensor:
        """Verifies as `shard.speculation.verify` does, with token_ids [M] put after rows by cells [S, R], and appends;
        the other tensors are named as there. A row for each sequence, [S, 2 * depth + 5], of what a
        `shard.decision.Committed` consists of, in that order."""


class Commit(Protocol):
    def __call__(
        self,
        steps: Tensor,
        pages: Tensor,
        *,
        first_rows: Tensor,
        path: Tensor,
        num_kept: Tensor,
        physical_slots: Tensor,
    ) -> None:
        """As `shard.kv_cache.KVCache.commit_spans`, of its step rows and pages of all layers."""


class Drafting(Protocol):
    """Over a drafter's memory, and its marks of what was asked."""

    def __init__(self, memory: "Memory", asked_lookup: Tensor, asked_heads: Tensor) -> None:
        """The marks [] are float32, 1 or 0."""

    def learn(
        self,
        slots: Tensor,
        num_decoding: int,
        *,
        token_ids: Tensor,
        num_emitted: Tensor,
        on_path: Tensor | None,
        path: Tensor,
        num_accepted: Tensor,
        num_checked: Tensor,
    ) -> Tensor | None:
        """As `shard.speculation.drafter.Drafter.learn`. Then nothing is pending, and nobody was asked."""

    def propose(
        self,
        states: "SequenceStates",
        candidates: "Candidates | None",
        prices: "DevicePrices",
        *,
        slots: Tensor,
        proposing: Tensor,
        max_drafts: Tensor,
        max_depth: Tensor,
    ) -> "DraftTree":
        """As `shard.speculation.drafter.Drafter.propose`; those who want no drafts are not asked."""


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
    kernels = _kernels_for(dtype, device)
    return None if kernels is None else kernels.attend


def multiply_for(dtype: torch.dtype, device: torch.device) -> Multiply | None:
    kernels = _kernels_for(dtype, device)
    return None if kernels is None else kernels.multiply


def rows_for(dtype: torch.dtype, device: torch.device) -> Rows | None:
    kernels = _kernels_for(dtype, device)
    return None if kernels is None else kernels.rows


def layout_for(device: torch.device) -> LayOut | None:
    """For whatever type: rows are laid out in integers."""
    kernels = _load(device) if device.type == _DEVICE_TYPE else None
    return None if kernels is None else kernels.lay_out


def best_for(dtype: torch.dtype, device: torch.device) -> Best | None:
    kernels = _kernels_for(dtype, device)
    return None if kernels is None else kernels.best


def commit_for(dtype: torch.dtype, device: torch.device) -> Commit | None:
    kernels = _kernels_for(dtype, device)
    return None if kernels is None else kernels.commit


def decide_for(device: torch.device) -> Decide | None:
    kernels = _load(device) if device.type == _DEVICE_TYPE else None
    return None if kernels is None else kernels.decide


def drafting_for(device: torch.device) -> type[Drafting] | None:
    kernels = _load(device) if device.type == _DEVICE_TYPE else None
    return None if kernels is None else kernels.drafting


def has_fp8(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether weights, keys and values may be floating-point numbers of 8 bits."""
    is_new = device.type == "cuda" and torch.cuda.get_device_capability(device) >= _LEAST_CAPABILITY_OF_FP8
    return is_new and multiply_for(dtype, device) is not None


def _kernels_for(dtype: torch.dtype, device: torch.device) -> _Kernels | None:
    return _load(device) if device.type == _DEVICE_TYPE and dtype in _DTYPES else None


def capture_for(dtype: torch.dtype, device: torch.device, *, least_free: int = 0) -> "GraphCapture | None":
    """What steps are captured with, where attention needs nothing of the host; as long as `least_free` bytes of the
    device's memory are free."""
    if device.type != "cuda" or attention_for(dtype, device) is None:
        return None
    from shard.cuda.graphs import GraphCapture

    return GraphCapture(device, least_free=least_free)


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
