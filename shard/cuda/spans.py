"""Where the rows of a step stand in the paged cache, as the Triton kernels read it. Must not know what they do with it.

Everything that changes from step to step is in tensors, so that a captured step is replayed with others' content; the
numbers beside them bound it.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

# Columns of the table before the block ids.
FIRST_ROW, NUM_ROWS, FIRST_BLOCK = range(3)


@dataclass(frozen=True, slots=True)
class DeviceSpans:
    """S spans, step spans first, over the N rows of a step.

    table [S, 2 + B] int32: a span's first row, its number of rows, its block ids, padded with block 0. First rows
    ascend; a span without rows does nothing, so a captured step has places for more spans than there are. positions [N]
    int64. ancestors [step spans or 1, R, R] uint8, R the most rows of a step span: row j is row r or lies on its way
    from the first; None without step spans.
    """

    table: Tensor
    positions: Tensor
    ancestors: Tensor | None
    num_steps: int
    # Most rows of a direct span; 0 without any.
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
    ) -> "DeviceSpans":
        """Spans of `num_rows` rows each, one after another; the first `num_steps` are trees, the others chunks."""
        width = max(len(table) for table in tables)
        lines: list[list[int]] = []
        first = 0
        for table, count in zip(tables, num_rows, strict=True):
            lines.append([first, count, *table, *[0] * (width - len(table))])
            first += count
        return cls(
            torch.tensor(lines, dtype=torch.int32).to(positions.device, non_blocking=True),
            positions.contiguous(),
            None if ancestors is None else ancestors.contiguous().view(torch.uint8),
            num_steps,
            most_direct_rows=max(num_rows[num_steps:], default=0),
        )

    @property
    def num_spans(self) -> int:
        return len(self.table)

    @property
    def most_step_rows(self) -> int:
        return 0 if self.ancestors is None else self.ancestors.shape[1]

    @property
    def most_blocks(self) -> int:
        return self.table.shape[1] - FIRST_BLOCK

    def physical_slots(self, block_size: int) -> Tensor:
        """Block id * block_size + place in the block of each row, [N] int64."""
        rows = torch.arange(len(self.positions), dtype=torch.int32, device=self.table.device)
        span = torch.searchsorted(self.table[:, FIRST_ROW].contiguous(), rows, right=True) - 1
        block = torch.div(self.positions, block_size, rounding_mode="floor")
        return self.table[span, FIRST_BLOCK + block].long() * block_size + self.positions % block_size
