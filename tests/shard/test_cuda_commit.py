"""Keys and values become pages by the Triton kernel as by torch's operations, but for block 0, which nobody reads.

Compiled where there is a GPU, interpreted without one, as test_cuda_attention.py.
"""

import pytest
import torch
from torch import Tensor

from shard import kv_cache
from shard.kv_cache import KVCache
from tests.shard.triton_device import DEVICE, DTYPES, INTERPRETED, needs_gpu

pytestmark = [] if INTERPRETED else [pytest.mark.gpu, needs_gpu]

LAYERS, BLOCKS, BLOCK_SIZE = 2, 9, 4
# Of the rows of three spans, and how many of a path are kept; behind them rows that a span does not have.
NUM_ROWS, PATHS, NUM_KEPT = [4, 1, 3], [[0, 2, 3, 4], [0, 4, 4, 4], [0, 1, 2, 4]], [3, 1, 0]


def _cache(dtype: torch.dtype, page_dtype: torch.dtype | None, kv_heads: int, dim: int) -> KVCache:
    """Of numbers that also a page of 8 bits holds, and the interpreter's: it rounds wrongly."""
    cache = KVCache(
        num_layers=LAYERS,
        num_blocks=BLOCKS,
        block_size=BLOCK_SIZE,
        num_kv_heads=kv_heads,
        head_dim=dim,
        dtype=dtype,
        device=DEVICE,
        max_step_rows=11,
        page_dtype=page_dtype,
    )
    generator = torch.Generator().manual_seed(0)
    for layer in range(LAYERS):
        for tensor in (cache.step_rows(layer), cache.pages(layer)):
            values = torch.randint(-15, 16, tensor.shape, generator=generator).float() * 2
            tensor.copy_(values.to(tensor.dtype))
        cache.step_rows(layer)[3, 1, 2] = 1e4
        cache.step_rows(layer)[0, 1, 5] = -1e4
    return cache


def _pages(cache: KVCache, layer: int) -> Tensor:
    return cache.pages(layer).float().view(2, BLOCKS + 1, -1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("is_narrow", [False, True])
@pytest.mark.parametrize(("kv_heads", "dim"), [(2, 16), (3, 40)])
def test_rows_on_a_path_are_kept(
    dtype: torch.dtype, is_narrow: bool, kv_heads: int, dim: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from shard.cuda.commit import commit

    if is_narrow and DEVICE.type == "cuda" and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("the device has no such numbers")
    page_dtype = torch.float8_e4m3fn if is_narrow else None
    first_rows, num_rows = torch.tensor([[0, 4, 5], NUM_ROWS], device=DEVICE)
    # Parts of a tensor that holds other things, too.
    said = torch.tensor([[*path, kept, 7] for path, kept in zip(PATHS, NUM_KEPT, strict=True)], device=DEVICE)
    path, num_kept = said[:, :4], said[:, 4]
    slots = torch.tensor([17, 18, 9, 39, 4, 20, 21, 22], device=DEVICE)
    kernel, plain = (_cache(dtype, page_dtype, kv_heads, dim) for _ in range(2))
    before = _pages(kernel, 0)[:, 0].clone()
    for cache, found in ((kernel, commit), (plain, None)):
        monkeypatch.setattr(kv_cache, "commit_for", lambda dtype, device, found=found: found)
        cache.commit_spans(first_rows, num_rows, path, num_kept, slots)
    for layer in range(LAYERS):
        assert torch.equal(_pages(kernel, layer)[:, 1:], _pages(plain, layer)[:, 1:])
        # Row 3, the last of the first span that is kept, is in the last place of block 9.
        last = _pages(kernel, layer).view(2, BLOCKS + 1, kv_heads, BLOCK_SIZE, dim)[:, 9, :, 3]
        bound = 448 if is_narrow else torch.inf
        assert torch.equal(last, cache.step_rows(layer)[3].float().clamp_max(bound).view(2, kv_heads, dim))
    assert torch.equal(_pages(kernel, 0)[:, 0], before)
