"""Who holds a slot and blocks on the shards: admission, growth, preemption and release.

Pure. Must not know what a step does with a sequence, or what is drafted.

Sequences are served in order of arrival. When blocks run out the youngest is preempted and recomputed later, so the
oldest always gets on.
"""

from bisect import insort
from operator import attrgetter

from router.block_manager import BlockManager, extend_prefix_keys
from router.proposal import Proposal
from router.sequence import Sequence, SequenceStatus

_arrival = attrgetter("seq_id")


class Placement:
    """`running` hold a slot and blocks, `waiting` do not; both in order of arrival."""

    def __init__(self, num_blocks: int, block_size: int, *, num_slots: int, enable_prefix_caching: bool) -> None:
        self.blocks = BlockManager(num_blocks, block_size)
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self.num_preemptions = 0
        self._has_prefixes = enable_prefix_caching
        # For the oldest that waits, when last tried.
        self._lacks_blocks = False
        self._free_slots = list(range(num_slots - 1, -1, -1))
        self._released_slots: list[int] = []

    @property
    def next_to_admit(self) -> list[Sequence]:
        """Those that wait, as far as there are slots for them; nobody while the oldest waits for blocks."""
        return [] if self._lacks_blocks else self.waiting[: len(self._free_slots)]

    @property
    def suspect(self) -> Sequence | None:
        """The oldest that runs of those that shards may die of."""
        return next((sequence for sequence in self.running if sequence.is_suspect), None)

    @property
    def is_suspect_next(self) -> bool:
        """Whether the next that could be admitted is one."""
        return bool(self.waiting) and self.waiting[0].is_suspect

    def take_released_slots(self) -> list[int]:
        """Slots given back since the last call; the shards are to forget them."""
        released, self._released_slots = self._released_slots, []
        return released

    def add(self, sequence: Sequence) -> None:
        insort(self.waiting, sequence, key=_arrival)

    def remove(self, sequence: Sequence) -> None:
        """The one place where a sequence that ends gives back its blocks and slot, if it has them."""
        if sequence.status is SequenceStatus.RUNNING:
            self._leave(sequence)
        else:
            self.waiting.remove(sequence)

    def reset_all(self) -> list[Sequence]:
        """Every sequence, as one that waits: the shards lost what they held."""
        for sequence in self.running:
            _reset(sequence)
        return sorted([*self.waiting, *self.running], key=_arrival)

    def admit(self) -> tuple[Sequence, list[int]] | None:
        """Gives the oldest that waits a slot and blocks for all its tokens, if there are enough of both."""
        if not self.waiting or not self._free_slots or self.waiting[0].outstanding:
            return None
        sequence, block_size = self.waiting[0], self.blocks.block_size
        # A hit never covers the last token: some forward pass has to yield the next one.
        hittable = (sequence.num_tokens - 1) // block_size if self._has_prefixes else 0
        extend_prefix_keys(sequence.prefix_keys, sequence.token_ids, block_size, num_blocks=hittable)
        hit = self.blocks.match(sequence.prefix_keys[:hittable])
        missing = self.blocks.blocks_for(sequence.num_tokens) - len(hit)
        # A block for each that runs stays free: a newcomer that is preempted at once would prefill in vain.
        self._lacks_blocks = not self.blocks.can_allocate(missing + len(self.running), holding=hit)
        if self._lacks_blocks:
            return None
        self.blocks.hold(hit)
        sequence.block_table = hit + self.blocks.allocate(missing)
        sequence.slot = self._free_slots.pop()
        sequence.num_prefilled_tokens = sequence.num_computed_tokens = len(hit) * block_size
        sequence.num_registered_blocks = len(hit)
        sequence.num_tokens_to_prefill = sequence.num_tokens
        if sequence.num_cached_prompt_tokens is None:
            sequence.num_cached_prompt_tokens = sequence.num_computed_tokens
        sequence.status = SequenceStatus.RUNNING
        self.waiting.remove(sequence)
        insort(self.running, sequence, key=_arrival)
        return sequence, list(sequence.block_table)

    def grow(self, sequence: Sequence, num_tokens: int) -> list[int] | None:
        """The blocks that it still needs for `num_tokens` tokens; the youngest make room. None: itself had to."""
        missing = self.blocks.blocks_for(num_tokens) - len(sequence.block_table)
        if missing <= 0:
            return []
        while not self.blocks.can_allocate(missing):
            youngest = self.running[-1]
            self.num_preemptions += 1
            self._leave(youngest)
            self.add(youngest)
            if youngest is sequence:
                return None
        new_block_ids = self.blocks.allocate(missing)
        sequence.block_table += new_block_ids
        return new_block_ids

    def register(self, sequence: Sequence) -> None:
        """Offers its full, written blocks to the prefix table."""
        full = sequence.num_computed_tokens // self.blocks.block_size if self._has_prefixes else 0
        if full <= sequence.num_registered_blocks:
            return
        extend_prefix_keys(sequence.prefix_keys, sequence.token_ids, self.blocks.block_size, num_blocks=full)
        for index in range(sequence.num_registered_blocks, full):
            self.blocks.register(sequence.prefix_keys[index], sequence.block_table[index])
        sequence.num_registered_blocks = full

    def _leave(self, sequence: Sequence) -> None:
        self.register(sequence)
        self.blocks.free(sequence.block_table)
        assert sequence.slot is not None
        self._free_slots.append(sequence.slot)
        self._released_slots.append(sequence.slot)
        self.running.remove(sequence)
        _reset(sequence)


def _reset(sequence: Sequence) -> None:
    sequence.status = SequenceStatus.WAITING
    sequence.slot = None
    sequence.block_table = []
    sequence.num_registered_blocks = 0
    sequence.num_computed_tokens = 0
    sequence.num_prefilled_tokens = 0
    sequence.num_tokens_to_prefill = 0
    sequence.num_proposed_drafts = 0
    sequence.proposed_depth = 0
    sequence.proposal = Proposal.NONE
