import torch

from shard.kv_cache import KVCache


def make_cache(page_dtype: torch.dtype | None = None) -> KVCache:
    return KVCache(
        num_layers=3,
        num_blocks=6,
        block_size=4,
        num_kv_heads=2,
        head_dim=8,
        dtype=torch.float32,
        device=torch.device("cpu"),
        max_step_rows=5,
        page_dtype=page_dtype,
    )


def read(cache: KVCache, layer: int, blocks: list[int]) -> torch.Tensor:
    """[2, kv heads, tokens, head_dim]"""
    index = cache.page_index(torch.tensor([blocks]))
    return cache.pages(layer).index_select(0, index).view(2, 2, -1, 8)


def test_a_written_token_is_read_back_at_its_place_in_its_block() -> None:
    cache = make_cache()
    rows = torch.randn(3, 4, 8)
    slots = torch.tensor([5 * 4 + 3, 2 * 4, 2 * 4 + 1])
    cache.write(1, cache.token_index(slots), rows)
    found = read(cache, 1, [2, 5])
    for row, place in zip(rows, [7, 0, 1], strict=True):
        assert torch.equal(found[:, :, place], row.view(2, 2, 8))
    assert found.count_nonzero() == rows.count_nonzero()
    assert not read(cache, 0, [1, 2, 3, 4, 5, 6]).any()


def test_commit_copies_the_accepted_rows_of_all_layers_and_sends_the_others_to_block_0() -> None:
    cache = make_cache()
    for layer in range(3):
        cache.step_rows(layer).copy_(torch.randn(5, 4, 8))
    cache.commit(torch.tensor([0, 1, 4]), torch.tensor([9, 0, 10]))
    for layer in range(3):
        found = read(cache, layer, [1, 2, 3, 4, 5, 6])
        assert torch.equal(found[:, :, 5], cache.step_rows(layer)[0].view(2, 2, 8))
        assert torch.equal(found[:, :, 6], cache.step_rows(layer)[4].view(2, 2, 8))
        found[:, :, 5:7] = 0
        assert not found.any()


def test_bytes_per_block_is_what_a_block_takes() -> None:
    per_block = KVCache.bytes_per_block(num_layers=3, block_size=4, num_kv_heads=2, head_dim=8, dtype=torch.float32)
    assert per_block * 7 == make_cache()._page_tokens.nbytes


def test_pages_of_8_bits_hold_the_nearest_numbers_there_are() -> None:
    cache = make_cache(torch.float8_e4m3fn)
    rows = 100 * torch.randn(2, 4, 8)
    # Beyond the greatest number.
    rows[0, 1, 3], rows[1, 2, 4] = 1e4, -1e4
    cache.write(1, cache.token_index(torch.tensor([9])), rows[:1])
    cache.step_rows(1)[2] = rows[1]
    cache.commit(torch.tensor([2]), torch.tensor([10]))
    kept = rows.clamp(-448, 448).to(torch.float8_e4m3fn).float()
    pages = cache.pages(1).float().view(2, 7, 2, 4, 8)
    for place, row in ((1, kept[0]), (2, kept[1])):
        assert torch.equal(pages[:, 2, :, place], row.view(2, 2, 8))
    assert pages.count_nonzero() == kept.count_nonzero()
    assert float(pages.abs().max()) == 448
