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
        physical_slots = _physical_slots(positions, spans, cache)
        first_rows = [0, *accumulate(span.num_rows for span in spans)]
        has_kernel = kernels_for(cache.dtype, cache.device) is not None
        steps = [i for i, span in enumerate(spans) if not span.direct]
        if not steps:
            ancestors = None
        elif ancestors is None:
            num_rows = max(spans[i].num_rows for i in steps)
            ancestors = torch.ones(1, num_rows, num_rows, dtype=torch.bool, device=cache.device).tril()
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
                    [spans[grouped[i]] for i in members],
                    [first_rows[grouped[i]] for i in members],
                    positions,
                    cache,
                    ancestors=_members_of(ancestors, [grouped[i] for i in members], len(steps)),
                )
                for members in plan_groups([spans[i] for i in grouped])
            ),
            steps=_paged_steps([spans[i] for i in steps], [first_rows[i] for i in steps], positions, ancestors)
            if has_kernel and ancestors is not None
            else None,
        )


def _members_of(ancestors: Tensor | None, members: list[int], num_steps: int) -> Tensor | None:
    """The ancestors of some spans; step spans are the first `num_steps`, and one entry may stand for all of them."""
    if ancestors is None or members[0] >= num_steps:
        return None
    if len(ancestors) == 1 or len(members) == num_steps:
        return ancestors
    return ancestors.index_select(0, torch.tensor(members).to(ancestors.device, non_blocking=True))


def _paged_steps(spans: list[Span], first_rows: list[int], positions: Tensor, ancestors: Tensor) -> PagedSteps:
    return PagedSteps(
        tables=[span.block_ids for span in spans],
        first_rows=first_rows,
        num_rows=[span.num_rows for span in spans],
        # A sequence's first row is its last committed token, at the position behind the cached ones.
        lengths=positions[first_rows],
        ancestors=ancestors,
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
