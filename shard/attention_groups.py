"""Owns how the spans of a step are grouped for attention, and each group's indices and mask.

Spans of a group are padded to its longest block table, so step spans are grouped by the power of two of their table
length: one long sequence does not pad the others. A prompt chunk is a group of its own. The mask is the only place
that says which key a row may see.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from shard.kv_cache import KVCache


@dataclass(frozen=True, slots=True)
class Span:
    """Consecutive rows of one sequence; the block ids cover every position that the rows can have."""

    num_rows: int
    block_ids: list[int]
    direct: bool


@dataclass(frozen=True, slots=True)
class AttentionGroup:
    """S spans of up to R rows each over L positions. Keys and values are laid out by absolute position.

    Uniform groups (equal spans, rows that follow one another) address their rows by a slice, others by indices.
    """

    num_spans: int  # S
    num_rows: int  # R, rows of the longest span
    first_row: int
    num_real_rows: int  # M, rows that exist
    padded_rows: Tensor | None  # [S * R] row of the step for each place of the group; None if uniform
    rows: Tensor | None  # [M] rows of the step that belong to the group; None if uniform
    places: Tensor | None  # [M] their places in S * R; None if uniform
    pages: Tensor  # [2 * S * kv heads * blocks] rows of the cache's pages
    own: Tensor | None  # [M * 2 * kv heads] where the step rows' own keys and values go; None for a chunk
    # scratch shared by all groups and layers, in the shapes that a layer needs
    keys: Tensor  # [S, kv heads, L, head_dim]
    values: Tensor  # [S, kv heads, L, head_dim]
    scratch_pages: Tensor  # keys, then values: [2 * S * kv heads * blocks, block_size * head_dim]
    scratch_tokens: Tensor  # the same: [2 * S * kv heads * L, head_dim]
    mask: Tensor  # [S, 1, R, L] added to the scores: 0 where visible, else -inf
    folded_masks: dict[int, Tensor] = field(default_factory=dict)  # by heads per kv head, made by the first layer

    @property
    def is_chunk(self) -> bool:
        return self.own is None

    def folded_mask(self, heads_per_kv: int) -> Tensor:
        """The mask for queries whose kv group's heads lie beside each row: [S, 1, R * heads_per_kv, L] (or 1 for R)."""
        if self.num_rows == 1 or heads_per_kv == 1:
            return self.mask
        if heads_per_kv not in self.folded_masks:
            self.folded_masks[heads_per_kv] = self.mask.repeat_interleave(heads_per_kv, dim=2)
        return self.folded_masks[heads_per_kv]


def plan_groups(spans: list[Span]) -> list[list[int]]:
    """Which spans (by index) share a group."""
    step_groups: dict[int, list[int]] = {}
    chunks: list[list[int]] = []
    for index, span in enumerate(spans):
        if span.direct:
            chunks.append([index])
        else:
            step_groups.setdefault((len(span.block_ids) - 1).bit_length(), []).append(index)
    return [*step_groups.values(), *chunks]


def build_group(spans: list[Span], first_rows: list[int], positions: Tensor, cache: KVCache) -> AttentionGroup:
    """Prepare one group; `first_rows` is each span's first row in the step."""
    num_spans, num_rows = len(spans), max(span.num_rows for span in spans)
    num_blocks = max(len(span.block_ids) for span in spans)
    length = num_blocks * cache.block_size
    uniform = all(
        span.num_rows == num_rows and first == first_rows[0] + i * num_rows
        for i, (span, first) in enumerate(zip(spans, first_rows, strict=True))
    )
    tables = torch.tensor([span.block_ids + [0] * (num_blocks - len(span.block_ids)) for span in spans])
    padded_rows = rows = places = None
    if uniform:
        own_positions = positions[first_rows[0] : first_rows[0] + num_spans * num_rows]
        padded_positions = own_positions.view(num_spans, num_rows)
        span_of_row = torch.arange(num_spans, device=cache.device).repeat_interleave(num_rows)
    else:
        padded_rows, rows, places = _row_indices(spans, first_rows, num_rows, cache.device)
        own_positions = positions.index_select(0, rows)
        padded_positions = positions.index_select(0, padded_rows).view(num_spans, num_rows)
        span_of_row = torch.div(places, num_rows, rounding_mode="floor")
    scratch = cache.workspace(2 * num_spans * cache.num_kv_heads * length * cache.head_dim)
    keys, values = scratch.view(2, num_spans, cache.num_kv_heads, length, cache.head_dim).unbind()
    return AttentionGroup(
        num_spans=num_spans,
        num_rows=num_rows,
        first_row=first_rows[0],
        num_real_rows=sum(span.num_rows for span in spans),
        padded_rows=padded_rows,
        rows=rows,
        places=places,
        pages=cache.page_index(tables.to(cache.device, non_blocking=True)),
        own=None if spans[0].direct else _own_index(own_positions, span_of_row, num_spans, length, cache),
        keys=keys,
        values=values,
        scratch_pages=scratch.view(-1, cache.block_size * cache.head_dim),
        scratch_tokens=scratch.view(-1, cache.head_dim),
        mask=_causal_mask(padded_positions, length, cache.dtype),
    )


def _row_indices(
    spans: list[Span], first_rows: list[int], num_rows: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """padded_rows, rows and places of a group that is not uniform; a place without a row repeats its span's first."""
    padded: list[int] = []
    rows: list[int] = []
    places: list[int] = []
    for i, (span, first) in enumerate(zip(spans, first_rows, strict=True)):
        own = range(first, first + span.num_rows)
        rows += own
        places += range(i * num_rows, i * num_rows + span.num_rows)
        padded += [*own, *([first] * (num_rows - span.num_rows))]
    host = torch.tensor(padded + rows + places).to(device, non_blocking=True)
    first, second = len(padded), len(padded) + len(rows)
    return host[:first], host[first:second], host[second:]


def _own_index(positions: Tensor, span_of_row: Tensor, num_spans: int, length: int, cache: KVCache) -> Tensor:
    """Rows of the scratch, seen as [2 * S * kv heads * L, head_dim], for each row's keys, then values, by head."""
    heads = cache.num_kv_heads
    plane = torch.arange(2, device=cache.device)[:, None] * (num_spans * heads * length)
    head = plane + torch.arange(heads, device=cache.device) * length
    return ((span_of_row * (heads * length) + positions)[:, None] + head.view(-1)).view(-1)


def _causal_mask(positions: Tensor, length: int, dtype: torch.dtype) -> Tensor:
    """A row at position p sees keys 0..p: positions [S, R] -> [S, 1, R, L]."""
    hidden = torch.arange(length, device=positions.device) > positions[:, :, None]
    return torch.zeros((), dtype=dtype, device=positions.device).masked_fill(hidden, -torch.inf).unsqueeze(1)
