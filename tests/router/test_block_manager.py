"""Block accounting by itself; together with plans it is tested in test_scheduler."""

from hypothesis import given
from hypothesis import strategies as st

from router.block_manager import BlockManager, extend_prefix_keys


def keys_of(token_ids: list[int], block_size: int = 2) -> list[bytes]:
    keys: list[bytes] = []
    extend_prefix_keys(keys, token_ids, block_size, num_blocks=len(token_ids) // block_size)
    return keys


def test_a_key_covers_everything_before_its_block() -> None:
    assert keys_of([1, 2, 3, 4])[1] != keys_of([9, 2, 3, 4])[1]
    assert keys_of([1, 2, 3, 4])[0] == keys_of([1, 2, 9, 9])[0]


def test_keys_grow_with_the_tokens() -> None:
    keys = keys_of([1, 2])
    extend_prefix_keys(keys, [1, 2, 3, 4], 2, num_blocks=2)
    assert keys == keys_of([1, 2, 3, 4])


def test_a_registered_block_outlives_its_sequence_and_is_shared() -> None:
    blocks = BlockManager(4, 2)
    table = blocks.allocate(2)
    keys = keys_of([1, 2, 3, 4])
    for key, block in zip(keys, table, strict=True):
        blocks.register(key, block)
    blocks.free(table)
    assert (blocks.num_cached_blocks, blocks.num_free_blocks) == (2, 2)
    assert blocks.match(keys) == table
    blocks.hold(table)
    blocks.hold(table)
    blocks.free(table)
    assert blocks.num_allocated_blocks == 2
    blocks.check_integrity()


def test_eviction_takes_the_end_of_a_prefix_before_its_beginning() -> None:
    blocks = BlockManager(2, 2)
    table = blocks.allocate(2)
    keys = keys_of([1, 2, 3, 4])
    for key, block in zip(keys, table, strict=True):
        blocks.register(key, block)
    blocks.free(table)
    blocks.allocate(1)
    assert blocks.match(keys) == table[:1]


def test_a_match_is_not_counted_as_room() -> None:
    blocks = BlockManager(2, 2)
    table = blocks.allocate(1)
    key = keys_of([1, 2])[0]
    blocks.register(key, table[0])
    blocks.free(table)
    assert blocks.can_allocate(2)
    assert not blocks.can_allocate(2, holding=blocks.match([key]))


@given(st.lists(st.lists(st.integers(0, 1), min_size=2, max_size=12), min_size=1, max_size=8))
def test_a_match_always_has_the_content_asked_for(prompts: list[list[int]]) -> None:
    blocks = BlockManager(6, 2)
    content: dict[int, tuple[int, ...]] = {}
    for prompt in prompts:
        keys = keys_of(prompt)
        hit = blocks.match(keys)
        for index, block in enumerate(hit):
            assert content[block] == tuple(prompt[: 2 * index + 2])
        blocks.hold(hit)
        table = hit + blocks.allocate(len(keys) - len(hit))
        for index, (key, block) in enumerate(zip(keys, table, strict=True)):
            content[block] = tuple(prompt[: 2 * index + 2])
            blocks.register(key, block)
        blocks.free(table)
        blocks.check_integrity()
