"""Keys and values of accepted rows to their pages, by a Triton kernel: a program for each token and layer."""

from torch import Tensor

from shard.cuda.commit_kernels import commit_paths
from shard.cuda.device import early, power_of_two


def commit(
    steps: Tensor,
    pages: Tensor,
    *,
    first_rows: Tensor,
    path: Tensor,
    num_kept: Tensor,
    physical_slots: Tensor,
) -> None:
    """As `shard.cuda.interface.Commit` says."""
    num_layers, _, _, kv_heads, block_size, dim = pages.shape
    num_spans, depth = path.shape
    assert path.stride(1) == first_rows.stride(0) == physical_slots.stride(0) == 1
    commit_paths[depth, num_spans, num_layers](
        steps,
        pages,
        first_rows,
        path,
        num_kept,
        physical_slots,
        path.stride(0),
        num_kept.stride(0),
        steps.stride(0),
        pages.stride(0),
        KV_HEADS=kv_heads,
        DIM=dim,
        BLOCK_SIZE=block_size,
        PADDED_HEADS=power_of_two(2 * kv_heads, least=1),
        PADDED_DIM=power_of_two(dim, least=1),
        **early(pages.device),
        num_warps=4,
    )
