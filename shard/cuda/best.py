"""The best of wide rows by Triton kernels. Owns how rows are cut into parts: a single row fills a device."""

import torch
from torch import Tensor

from shard.cuda.best_kernels import best_of_parts, best_of_rows
from shard.cuda.device import early, power_of_two

# Columns of a part.
_TILE = 1024


def first_max(scores: Tensor) -> tuple[Tensor, Tensor]:
    values, columns = _best(scores, 1, None)
    return values[:, 0], columns[:, 0]


def best(scores: Tensor, width: int) -> tuple[Tensor, Tensor, Tensor]:
    log_sums = torch.empty(len(scores), dtype=torch.float32, device=scores.device)
    values, columns = _best(scores, min(width, scores.shape[1]), log_sums)
    return columns, values, log_sums


def _best(scores: Tensor, width: int, log_sums: Tensor | None) -> tuple[Tensor, Tensor]:
    """Values and columns [M, width]; with log_sums [M] they are written."""
    assert scores.stride(1) == 1
    device, (num_rows, num_columns) = scores.device, scores.shape
    num_parts = -(-num_columns // _TILE)
    part_values = torch.empty((num_rows, num_parts, width), dtype=torch.float32, device=device)
    part_columns = torch.empty((num_rows, num_parts, width), dtype=torch.int32, device=device)
    sums = None if log_sums is None else part_values.new_empty((num_rows, num_parts))
    values = torch.empty((num_rows, width), dtype=scores.dtype, device=device)
    columns = torch.empty((num_rows, width), dtype=torch.int64, device=device)
    best_of_parts[num_rows, num_parts](
        scores,
        part_values,
        part_columns,
        sums,
        num_columns,
        scores.stride(0),
        WIDTH=width,
        TILE=_TILE,
        **early(device),
        num_warps=4,
    )
    best_of_rows[num_rows,](
        part_values,
        part_columns,
        sums,
        values,
        columns,
        log_sums,
        num_parts,
        WIDTH=width,
        PARTS=power_of_two(num_parts, least=1),
        TILE=power_of_two(num_parts * width, least=32),
        **early(device),
        num_warps=4,
    )
    return values, columns
