"""Owns the description of one step's rows: what every layer needs to know, computed once.

The host knows spans (how many rows, which blocks). Positions may be known only to the device, where the step before
left them, so whatever depends on them is computed there and nothing is read back. Knows no model and no weights.

    rows        | decode and verify spans ("step rows") | prompt chunks ("direct rows") |
    keys go to  | step buffer, committed later          | pages                         |
"""

from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from shard.attention_groups import AttentionGroup, Span, build_group, plan_groups
from shard.cpu.kernels import kernels_for
from shard.cpu.spans import PagedSpans
from shard.cuda.kernels import attention_for
from shard.cuda.spans import DeviceSpans
from shard.host_copy import integers
from shard.kv_cache import KVCache


@dataclass(frozen=True, slots=True)
class ForwardBatch:
    """The packed rows of one step. All index tensors are int64 on the device of the cache."""

    token_ids: Tensor  # [N]
    positions: Tensor  # [N]
    physical_slots: Tensor  # [N], block_id * block_size + position % block_size
    num_step_rows: int
    # where the direct rows' keys and values lie in the cache; None without direct rows
    direct_index: Tensor | None
    groups: tuple[AttentionGroup, ...] = ()
    # All spans, where a kernel attends them that reads the pages itself; then there are no groups.
    paged: PagedSpans | None = None
    device_spans: DeviceSpans | None = None

    @classmethod
    def build(
        cls,
        *,
        token_ids: Tensor,
        positions: Tensor,
        spans: list[Span],
        cache: KVCache,
        ancestors: Tensor | None = None,
    ) -> "ForwardBatch":
        """Describe packed rows: token_ids and positions [N], int64, on the device of the cache.

        Step spans come before direct ones; block ids cover the positions of their span's rows. The rows of a direct
        span have consecutive positions. The first row of a step span is its root, at the first position that is not
        committed; the others are a tree below it, each as far behind the root as it is deep.

        `ancestors` [step spans, R, R] bool, on the same device, R the most rows of a step span: row j is row r or lies
        on the way to it from the root. Lines of rows that a span does not have are read and mean nothing. Without it
        each step span is a chain.
        """
        num_step_rows = sum(span.num_rows for span in spans if not span.direct)
        assert sum(span.num_rows for span in spans) == token_ids.numel() == positions.numel()
        assert num_step_rows <= cache.max_step_rows, f"{num_step_rows} step rows, room for {cache.max_step_rows}"
        assert [span.direct for span in spans] == sorted(span.direct for span in spans), "step spans come first"
        num_steps = sum(not span.direct for span in spans)
        if num_steps and ancestors is None:
            most_rows = max(span.num_rows for span in spans[:num_steps])
            ancestors = torch.ones(1, most_rows, most_rows, dtype=torch.bool, device=cache.device).tril()
        elif not num_steps:
            ancestors = None
        tables, num_rows = [span.block_ids for span in spans], [span.num_rows for span in spans]
        if kernels := kernels_for(cache.dtype, cache.device):
            paged = PagedSpans(
                tables=tables, num_rows=num_rows, num_steps=num_steps, positions=positions, ancestors=ancestors
            )
            slots = kernels.find_slots(paged, cache.block_size)
            return cls(token_ids, positions, slots, num_step_rows, direct_index=None, paged=paged)
        if attention_for(cache.dtype, cache.device):
            device_spans = DeviceSpans.build(
                tables=tables,
                num_rows=num_rows,
                num_steps=num_steps,
                positions=positions,
                ancestors=ancestors,
                block_size=cache.block_size,
            )
            return cls.of_device_spans(token_ids, device_spans, num_step_rows, cache)
        physical_slots = _physical_slots(positions, spans, cache)
        first_rows = [0, *accumulate(span.num_rows for span in spans)]
        return cls(
            token_ids,
            positions,
            physical_slots,
            num_step_rows,
            _direct_index(physical_slots, num_step_rows, cache),
            groups=tuple(
                build_group(
                    [spans[i] for i in members],
                    [first_rows[i] for i in members],
                    positions,
                    cache,
                    ancestors=_members_of(ancestors, members, num_steps),
                )
                for members in plan_groups(spans)
            ),
        )

    @classmethod
    def of_device_spans(
        cls, token_ids: Tensor, spans: DeviceSpans, num_step_rows: int, cache: KVCache
    ) -> "ForwardBatch":
        """Of spans whose blocks only the device knows."""
        slots = spans.physical_slots
        direct_index = _direct_index(slots, num_step_rows, cache)
        return cls(token_ids, spans.positions, slots, num_step_rows, direct_index, device_spans=spans)


def _direct_index(physical_slots: Tensor, num_step_rows: int, cache: KVCache) -> Tensor | None:
    return cache.token_index(physical_slots[num_step_rows:]) if num_step_rows < len(physical_slots) else None


def _members_of(ancestors: Tensor | None, members: list[int], num_steps: int) -> Tensor | None:
    """The ancestors of some spans; step spans are the first `num_steps`, and one entry may stand for all of them."""
    if ancestors is None or members[0] >= num_steps:
        return None
    if len(ancestors) == 1 or len(members) == num_steps:
        return ancestors
    return ancestors.index_select(0, integers(members, ancestors.device))


def _physical_slots(positions: Tensor, spans: list[Span], cache: KVCache) -> Tensor:
    """Look each position up in its span's block table; the tables of all spans lie one after another."""
    table: list[int] = []
    table_start: list[int] = []
    for span in spans:
        table_start += [len(table)] * span.num_rows
        table += span.block_ids
    host = integers(table + table_start, cache.device)
    in_table = torch.div(positions, cache.block_size, rounding_mode="floor") + host[len(table) :]
    return host.index_select(0, in_table) * cache.block_size + positions % cache.block_size
