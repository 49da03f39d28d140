"""The decision of a step by a Triton kernel: a program for each sequence."""

import torch
from torch import Tensor

from shard.cuda.decide_kernels import decide_sequences
from shard.cuda.device import early, power_of_two
from shard.states import SequenceStates

# Of rows and depths: steps with prompts come in all sizes, and each tile is compiled when it is first needed.
_LEAST_TILE = 16
# Of the pairs of rows of a tree a warp takes so many, if there are not too many.
_PAIRS_PER_WARP, _MOST_WARPS = 1024, 8


def decide(
    states: SequenceStates,
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
    """As `shard.cuda.interface.Decide` says."""
    num_sequences, num_rows = cells.shape
    decided = torch.empty((num_sequences, 2 * depth + 5), dtype=torch.int64, device=slots.device)
    rows = power_of_two(num_rows, least=_LEAST_TILE)
    decide_sequences[num_sequences,](
        slots,
        token_ids.contiguous(),
        cells.contiguous(),
        drafts.contiguous(),
        parents.contiguous(),
        None if on_path is None else on_path.contiguous().view(torch.uint8),
        num_drafts.contiguous(),
        states.token_ids,
        states.num_tokens,
        states.max_num_tokens,
        states.num_drafts,
        states.finished.view(torch.uint8),
        states.stop_token_ids,
        decided,
        num_rows,
        depth,
        states.token_ids.shape[1],
        states.stop_token_ids.shape[1],
        PADDED_ROWS=rows,
        PADDED_DEPTH=power_of_two(depth, least=_LEAST_TILE),
        **early(slots.device),
        num_warps=num_warps(rows),
    )
    return decided


def num_warps(num_rows: int) -> int:
    return min(_MOST_WARPS, max(1, num_rows * num_rows // _PAIRS_PER_WARP))
