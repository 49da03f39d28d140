"""Owns how the spans of a step are grouped for attention, and each group's indices and masks.

Spans of a group are padded to its longest block table, so step spans are grouped by the power of two of their table
length: one long sequence does not pad the others. A prompt chunk is a group of its own. The mask is the only place
that says which key a row may see.

    place of a key | 0 .. C-1, by position: the pages | C .. L-1, by row: the step's own rows (none in a chunk) |

Rows of a tree share positions, so they have places of their own, behind the pages.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from shard.host_copy import integers
from shard.kv_cache import KVCache


@dataclass(frozen=True, slots=True)
class Span:
    """Consecutive rows of one sequence; the block ids cover every position that the rows can have."""

    num_rows: int
    block_ids: list[int]
    direct: bool


class ScatteredRows(NamedTuple):
    """Where the rows of a group that is not uniform are."""

    padded: Tensor  # [S * R] row of the step for each place of the group; without one its span's first
    rows: Tensor  # [M] rows of the step that belong to the group
    places: Tensor  # [M] their places in S * R


@dataclass(frozen=True, slots=True)
class AttentionGroup:
    """S spans of up to R rows each over L places.

    Uniform groups (equal spans, rows that follow one another) address their rows by a slice, others by indices.
    """

    num_spans: int  # S
    num_rows: int  # R, rows of the longest span
    first_row: int
    num_real_rows: int  # M, rows that exist
    scattered: ScatteredRows | None  # None if uniform
    pages: Tensor  # [2 * S * kv heads * blocks] rows of the cache's pages
    own: Tensor | None  # [M * 2 * kv heads] where the step rows' own keys and values go; None for a chunk
    # scratch shared by all groups and layers, in the shapes that a layer needs
    keys: Tensor  # [S, kv heads, L, head_dim]
    values: Tensor  # [S, kv heads, L, head_dim]
    scratch_pages: Tensor  # keys, then values: [2 * S * kv heads * blocks, block_size * head_dim]
    scratch_tokens: Tensor  # the same: [2 * S * kv heads * L, head_dim]
    # what the masks are made of
    num_paged: int  # C
    positions: Tensor  # [S, R]
    ancestors: Tensor | None  # [S or 1, R, R]: row j is row r or lies on its way from the first row; None for a chunk
    # by window and heads per kv head, made by the first layer that asks
    masks: dict[tuple[int | None, int], Tensor] = field(default_factory=dict)

    @property
    def is_chunk(self) -> bool:
        return self.own is None

    def mask(self, window: int | None, heads_per_kv: int = 1) -> Tensor:
        """What is added to the scores, 0 where visible, else -inf: [S, 1, R * heads_per_kv, L].

        A row's line is repeated for the heads of a kv group that lie beside it, except if there is only one row: then
        it is [S, 1, 1, L] and broadcast.
        """
        # A window as long as the block table hides nothing: such layers share the mask of those without.
        window = window if window is not None and window < self.num_paged else None
        folded = heads_per_kv if self.num_rows > 1 else 1
        key = (window, folded)
        if key not in self.masks:
            self.masks[key] = self._mask(window) if folded == 1 else self.mask(window).repeat_interleave(folded, dim=2)
        return self.masks[key]

    def _mask(self, window: int | None) -> Tensor:
        device, length = self.positions.device, self.keys.shape[2]
        query = self.positions[:, :, None]
        place = torch.arange(self.num_paged, device=device)
        if self.ancestors is None:
            visible = place <= query
            if window is not None:
                visible &= place > query - window
        else:
            # Before the first row's position everything is committed, from there on only own rows count.
            visible = (place < query[:, :1]).expand(-1, self.num_rows, -1)
            own = self.ancestors.expand(self.num_spans, -1, -1)
            if window is not None:
                visible = visible & (place > query - window)
                own = own & (self.positions[:, None, :] > query - window)
            unused = visible.new_zeros(()).expand(*visible.shape[:2], length - self.num_paged - self.num_rows)
            visible = torch.cat((visible, own, unused), dim=2)
        zero = torch.zeros((), dtype=self.keys.dtype, device=device)
        return zero.masked_fill(~visible, -torch.inf).unsqueeze(1)


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


def build_group(
    spans: list[Span], first_rows: list[int], positions: Tensor, cache: KVCache, *, ancestors: Tensor | None
) -> AttentionGroup:
    """Prepare one group; `first_rows` is each span's first row in the step.

    `ancestors` [S or 1, at least R, the same] bool is that of the group's spans, in their order; None for a chunk.
    """
    num_spans, num_rows = len(spans), max(span.num_rows for span in spans)
    num_blocks = max(len(span.block_ids) for span in spans)
    num_paged = num_blocks * cache.block_size
    is_chunk = spans[0].direct
    # The own rows' places are gathered too, from block 0: whatever is not overwritten stays finite.
    num_own_blocks = 0 if is_chunk else -(-num_rows // cache.block_size)
    length = num_paged + num_own_blocks * cache.block_size
    uniform = all(
        span.num_rows == num_rows and first == first_rows[0] + i * num_rows
        for i, (span, first) in enumerate(zip(spans, first_rows, strict=True))
    )
    tables = torch.tensor(
        [span.block_ids + [0] * (num_blocks + num_own_blocks - len(span.block_ids)) for span in spans]
    )
    scattered = None
    if uniform:
        padded_positions = positions[first_rows[0] : first_rows[0] + num_spans * num_rows]
    else:
        scattered = _scattered_rows(spans, first_rows, num_rows, cache.device)
        padded_positions = positions.index_select(0, scattered.padded)
    own = None
    if not is_chunk:
        own_places = scattered.places if scattered else torch.arange(num_spans * num_rows, device=cache.device)
        own = _own_index(own_places, num_spans, num_rows, num_paged, length, cache)
    scratch = cache.workspace(2 * num_spans * cache.num_kv_heads * length * cache.head_dim)
    keys, values = scratch.view(2, num_spans, cache.num_kv_heads, length, cache.head_dim).unbind()
    return AttentionGroup(
        num_spans=num_spans,
        num_rows=num_rows,
        first_row=first_rows[0],
        num_real_rows=sum(span.num_rows for span in spans),
        scattered=scattered,
        pages=cache.page_index(tables.to(cache.device, non_blocking=True)),
        own=own,
        keys=keys,
        values=values,
        scratch_pages=scratch.view(-1, cache.block_size * cache.head_dim),
        scratch_tokens=scratch.view(-1, cache.head_dim),
        num_paged=num_paged,
        positions=padded_positions.view(num_spans, num_rows),
        ancestors=None if ancestors is None else ancestors[:, :num_rows, :num_rows],
    )


def _scattered_rows(spans: list[Span], first_rows: list[int], num_rows: int, device: torch.device) -> ScatteredRows:
    padded: list[int] = []
    rows: list[int] = []
    places: list[int] = []
    for i, (span, first) in enumerate(zip(spans, first_rows, strict=True)):
        own = range(first, first + span.num_rows)
        rows += own
        places += range(i * num_rows, i * num_rows + span.num_rows)
        padded += [*own, *([first] * (num_rows - span.num_rows))]
    host = integers(padded + rows + places, device)
    first, second = len(padded), len(padded) + len(rows)
    return ScatteredRows(host[:first], host[first:second], host[second:])


def _own_index(places: Tensor, num_spans: int, num_rows: int, first: int, length: int, cache: KVCache) -> Tensor:
    """Rows of the scratch, seen as [2 * S * kv heads * L, head_dim], for each row's keys, then values, by head.

    Row r of a span lies at place `first` + r; `places` [M] are s * R + r.
    """
    heads = cache.num_kv_heads
    plane = torch.arange(2, device=cache.device)[:, None] * (num_spans * heads * length)
    head = plane + torch.arange(heads, device=cache.device) * length
    span = torch.div(places, num_rows, rounding_mode="floor")
    return ((span * (heads * length) + first + places % num_rows)[:, None] + head.view(-1)).view(-1)
