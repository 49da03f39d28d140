"""Where the rows of a step stand in the paged cache, as the Triton kernels read it. Must not know what they do with it.

Everything that changes from step to step is in tensors, so that a captured step is replayed with others' content; the
numbers beside them bound it.
"""

from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

# Columns of `rows`.
FIRST_ROW, NUM_ROWS, TABLE = range(3)


@dataclass(frozen=True, slots=True)
class DeviceSpans:
    """S spans, step spans first, over the N rows of a step.

    rows [S, 3] int32: a span's first row, its number of rows, and which of `tables` [T, B] int32 its block ids are in.
    First rows ascend; a span without rows does nothing. Behind the ids that a span needs a table may hold any others.
    positions and physical_slots (see `find_slots`) [N] int64. ancestors [step spans or 1, R, R] uint8, R the most rows
    of a step span: row j is row r or lies on its way from the first; None without step spans.
    """

    rows: Tensor
    tables: Tensor
    positions: Tensor
    physical_slots: Tensor
    ancestors: Tensor | None
    num_steps: int
    # Rows of all step spans, and most of a direct one; 0 without any.
    num_step_rows: int
    most_direct_rows: int

    @classmethod
    def build(
        cls,
        *,
        tables: list[list[int]],
        num_rows: list[int],
        num_steps: int,
        positions: Tensor,
        ancestors: Tensor | None,
        block_size: int,
    ) -> "DeviceSpans":
        """Spans of `num_rows` rows each, one after another; the first `num_steps` are trees, the others chunks."""
        width = max(len(table) for table in tables)
        first_rows = accumulate(num_rows[:-1], initial=0)
        numbers = [list(row) for row in zip(first_rows, num_rows, range(len(tables)), strict=True)]

        def copied(values: list[list[int]]) -> Tensor:
            return torch.tensor(values, dtype=torch.int32).to(positions.device, non_blocking=True)

        rows, padded = copied(numbers), copied([[*table, *[0] * (width - len(table))] for table in tables])
        return cls(
            rows,
            padded,
            positions.contiguous(),
            find_slots(rows, padded, positions, block_size),
            None if ancestors is None else ancestors.contiguous().view(torch.uint8),
            num_steps,
            num_step_rows=sum(num_rows[:num_steps]),
            most_direct_rows=max(num_rows[num_steps:], default=0),
        )

    @property
    def num_spans(self) -> int:
        return len(self.rows)

    @property
    def most_step_rows(self) -> int:
        return 0 if self.ancestors is None else self.ancestors.shape[1]

    @property
    def most_blocks(self) -> int:
        return self.tables.shape[1]


def find_slots(rows: Tensor, tables: Tensor, positions: Tensor, block_size: int) -> Tensor:
    """Block id * block_size + place in the block of each row of DeviceSpans, [N] int64; of a row beyond its table
    any."""
    index = torch.arange(len(positions), dtype=torch.int32, device=rows.device)
    span = torch.searchsorted(rows[:, FIRST_ROW].contiguous(), index, right=True) - 1
    block = torch.div(positions, block_size, rounding_mode="floor").clamp_max(tables.shape[1] - 1)
    return tables[rows[span, TABLE], block].long() * block_size + positions % block_size
