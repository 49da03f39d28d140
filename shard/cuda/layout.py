"""The rows of decoding sequences by a Triton kernel: what lay_out of shard/layout.py computes, and the spans of it.

In a step of few rows each operation takes a microsecond or two, whatever it does: so this is one. A program takes a
sequence.
"""

import torch
from torch import Tensor

from shard.cuda.device import WARP, early, power_of_two
from shard.cuda.interface import LaidOut
from shard.cuda.layout_kernels import lay_out_sequence
from shard.cuda.spans import DeviceSpans
from shard.states import SequenceStates


def lay_out(
    states: SequenceStates,
    *,
    slots: Tensor,
    allowed: Tensor,
    first_rows: Tensor,
    num_rows: Tensor,
    num_step_rows: int,
    width: int,
) -> LaidOut:
    """As `shard.cuda.interface.LayOut` says."""
    num_sequences, device = len(slots), states.device

    def made(*shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=device)

    token_ids, positions, physical_slots = made(num_step_rows), made(num_step_rows), made(num_step_rows)
    num_drafts = made(num_sequences)
    drafts, parents = made(num_sequences, width - 1), made(num_sequences, width - 1)
    on_path = made(num_sequences, width, width, dtype=torch.uint8)
    span_rows = made(num_sequences, 3, dtype=torch.int32)
    padded = power_of_two(width, least=WARP)
    lay_out_sequence[num_sequences,](
        slots,
        allowed,
        first_rows,
        num_rows,
        states.token_ids,
        states.num_tokens,
        states.max_num_tokens,
        states.finished,
        states.draft_token_ids,
        states.draft_parents,
        states.num_drafts,
        states.block_tables,
        token_ids,
        positions,
        physical_slots,
        num_drafts,
        drafts,
        parents,
        on_path,
        span_rows,
        states.token_ids.shape[1],
        states.draft_parents.shape[1],
        states.block_tables.shape[1],
        BLOCK_SIZE=states.block_size,
        WIDTH=width,
        PADDED_WIDTH=padded,
        **early(device),
        num_warps=padded // WARP,
    )
    spans = DeviceSpans(
        span_rows,
        states.block_tables,
        positions,
        physical_slots,
        on_path,
        num_steps=num_sequences,
        num_step_rows=num_step_rows,
        most_direct_rows=0,
    )
    return LaidOut(token_ids, positions, num_drafts, drafts, parents, on_path.view(torch.bool), spans)
