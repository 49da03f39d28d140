"""Which KV block belongs to whom: ids, reference counts, the prefix table and eviction.

Pure accounting. The bytes live in the shards; a tensor, a clock or a request is never seen here. Blocks have ids
1..num_blocks; block 0 is the shards' own, for padding.

A block is in one of three states:

    free       no content anybody could want
    cached     no sequence holds it, its content is in the prefix table; taken, oldest first, when free ones run out
    allocated  held by `ref_count` sequences

A block enters the prefix table under a key that covers every token up to its end, so equal keys mean equal
content. Only full blocks whose keys and values are known to be written may be registered.
"""

from array import array
from collections import OrderedDict
from collections.abc import Sequence as Seq
from hashlib import blake2b


def extend_prefix_keys(keys: list[bytes], token_ids: Seq[int], block_size: int, *, num_blocks: int) -> None:
    """Appends to `keys` until it covers the first `num_blocks` full blocks of `token_ids`."""
    tokens = array("I", token_ids[len(keys) * block_size : num_blocks * block_size])
    for start in range(0, len(tokens), block_size):
        parent = keys[-1] if keys else b""
        keys.append(blake2b(tokens[start : start + block_size], key=parent, digest_size=16).digest())


class BlockManager:
    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._free = list(range(num_blocks, 0, -1))
        self._cached: OrderedDict[int, None] = OrderedDict()  # least recently used first
        self._ref_count: dict[int, int] = {}
        self._block_of_key: dict[bytes, int] = {}
        self._key_of_block: dict[int, bytes] = {}

    @property
    def num_free_blocks(self) -> int:
        return len(self._free)

    @property
    def num_cached_blocks(self) -> int:
        return len(self._cached)

    @property
    def num_allocated_blocks(self) -> int:
        return len(self._ref_count)

    def blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    def match(self, keys: Seq[bytes]) -> list[int]:
        """The blocks of the longest registered prefix; they are not held until `hold`."""
        blocks: list[int] = []
        for key in keys:
            block = self._block_of_key.get(key)
            if block is None:
                break
            blocks.append(block)
        return blocks

    def can_allocate(self, num_blocks: int, *, holding: Seq[int] = ()) -> bool:
        """Whether that many new blocks could be had beside `holding`, the blocks of a match."""
        held = sum(block in self._cached for block in holding)
        return num_blocks <= len(self._free) + len(self._cached) - held

    def hold(self, blocks: Seq[int]) -> None:
        for block in blocks:
            self._cached.pop(block, None)
            self._ref_count[block] = self._ref_count.get(block, 0) + 1

    def allocate(self, num_blocks: int) -> list[int]:
        assert self.can_allocate(num_blocks), "allocate without can_allocate"
        blocks = [self._take() for _ in range(num_blocks)]
        self._ref_count.update(dict.fromkeys(blocks, 1))
        return blocks

    def _take(self) -> int:
        if self._free:
            return self._free.pop()
        block, _ = self._cached.popitem(last=False)
        del self._block_of_key[self._key_of_block.pop(block)]
        return block

    def free(self, block_table: Seq[int]) -> None:
        # Last block first: the end of a prefix is the less likely hit, so it is evicted before its beginning.
        for block in reversed(block_table):
            self._ref_count[block] -= 1
            if self._ref_count[block]:
                continue
            del self._ref_count[block]
            if block in self._key_of_block:
                self._cached[block] = None
            else:
                self._free.append(block)

    def register(self, key: bytes, block: int) -> None:
        """Makes an allocated, fully written block a possible hit. The first block with a key keeps it."""
        if key not in self._block_of_key and block not in self._key_of_block:
            self._block_of_key[key] = block
            self._key_of_block[block] = key

    def check_integrity(self) -> None:
        """Raises AssertionError where the books do not balance."""
        everywhere = [*self._free, *self._cached, *self._ref_count]
        assert sorted(everywhere) == list(range(1, self.num_blocks + 1)), "a block is lost or in two states"
        assert all(count > 0 for count in self._ref_count.values()), "an allocated block is held by nobody"
        assert {block: key for key, block in self._block_of_key.items()} == self._key_of_block
        assert not set(self._free) & set(self._key_of_block), "a free block can be hit"
        assert set(self._cached) <= set(self._key_of_block), "a cached block cannot be hit"
