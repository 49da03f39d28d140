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
from shard.cpu.kernels import PagedSteps, kernels_for
from shard.kv_cache import KVCache

__all__ = ["ForwardBatch", "Span"]


@dataclass(frozen=True, slots=True)
class ForwardBatch:
    """The packed rows of one step. All index tensors are int64 on the device of the cache."""

    token_ids: Tensor  # [N]
    positions: Tensor  # [N]
    physical_slots: Tensor  # [N], block_id * block_size + position % block_size
    num_step_rows: int
    # where the direct rows' keys and values lie in the cache; None without direct rows
    direct_index: Tensor | None
    groups: tuple[AttentionGroup, ...]
    # The step rows, where a kernel attends them that needs no group; then groups hold the chunks only.
    steps: PagedSteps | None

    @classmethod
    def build(cls, *, token_ids: Tensor, positions: Tensor, spans: list[Span], cache: KVCache) -> "ForwardBatch":
        """Describe packed rows: token_ids and positions [N], int64, on the device of the cache.

        The rows of a span have consecutive positions and its block ids cover them. Step spans come before direct ones.
        """
        num_step_rows = sum(span.num_rows for span in spans if not span.direct)
        assert sum(span.num_rows for span in spans) == token_ids.numel() == positions.numel()
        assert num_step_rows <= cache.max_step_rows, f"{num_step_rows} step rows, room for {cache.max_step_rows}"
        assert [span.direct for span in spans] == sorted(span.direct for span in spans), "step spans come first"
        physical_slots = _physical_slots(positions, spans, cache)
        first_rows = [0, *accumulate(span.num_rows for span in spans)]
        has_kernel = kernels_for(cache.dtype, cache.device) is not None
        grouped = [i for i, span in enumerate(spans) if span.direct or not has_kernel]
        return cls(
            token_ids=token_ids,
            positions=positions,
            physical_slots=physical_slots,
            num_step_rows=num_step_rows,
            direct_index=cache.token_index(physical_slots[num_step_rows:])
            if num_step_rows < token_ids.numel()
            else None,
            groups=tuple(
                build_group(
                    [spans[grouped[i]] for i in members], [first_rows[grouped[i]] for i in members], positions, cache
                )
                for members in plan_groups([spans[i] for i in grouped])
            ),
            steps=_paged_steps(spans, first_rows, positions) if has_kernel and num_step_rows else None,
        )


def _paged_steps(spans: list[Span], first_rows: list[int], positions: Tensor) -> PagedSteps:
    steps = [i for i, span in enumerate(spans) if not span.direct]
    firsts = [first_rows[i] for i in steps]
    return PagedSteps(
        tables=[spans[i].block_ids for i in steps],
        first_rows=firsts,
        num_rows=[spans[i].num_rows for i in steps],
        # A sequence's first row is its last committed token, at the position behind the cached ones.
        lengths=positions[firsts],
    )


def _physical_slots(positions: Tensor, spans: list[Span], cache: KVCache) -> Tensor:
    """Look each position up in its span's block table; the tables of all spans lie one after another."""
    table: list[int] = []
    table_start: list[int] = []
    for span in spans:
        table_start += [len(table)] * span.num_rows
        table += span.block_ids
    host = torch.tensor(table + table_start).to(cache.device, non_blocking=True)
    in_table = torch.div(positions, cache.block_size, rounding_mode="floor") + host[len(table) :]
    return host.index_select(0, in_table) * cache.block_size + positions % cache.block_size
