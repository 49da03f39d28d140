"""What the Triton kernels are to those who call them: what each is given and what it brings.

Must not know how any of them works, nor whether there are some.
"""

from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch
from torch import Tensor

from shard.attention_spec import AttentionSpec
from shard.cuda.spans import DeviceSpans
from shard.gate import Gate

if TYPE_CHECKING:
    from shard.speculation import Candidates, DraftTree, Yielded
    from shard.speculation.memory import Memory
    from shard.speculation.prices import DevicePrices
    from shard.states import SequenceStates


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
    """Over a drafter's memory."""

    def __init__(self, memory: "Memory") -> None: ...

    def learn(self, slots: Tensor, num_decoding: int, yielded: "Yielded") -> Tensor | None:
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
