"""A shard group without arithmetic: runs plans in order and checks that each row may read what it reads.

The content of a cache position is the tuple of all tokens up to it, which is what real keys and values depend on. The
next token is a function of the tokens alone; drafts are trees, right or wrong as a seeded generator says.
"""

import random
from collections import deque
from dataclasses import dataclass, field

from router.draft_counts import METHODS
from router.plan import NewSequence, SequenceResult, SequenceStep, StepPlan, StepResult

VOCABULARY = 50


def next_token(token_ids: tuple[int, ...]) -> int:
    return hash((17, *token_ids)) % VOCABULARY


def looked_up(depths: list[int], accepted: int, *, most_depth: int) -> list[int]:
    """Counts of drafts at such depths by lookup, of which so many were accepted, one below the other."""
    checked = [depths.count(depth) for depth in range(1, most_depth + 1)]
    others = [0] * most_depth * (len(METHODS) - 1)
    return [*checked, *others, *(int(depth <= accepted) for depth in range(1, most_depth + 1)), *others]


def continuation(prompt: list[int], *, max_num_tokens: int, stop: frozenset[int]) -> list[int]:
    """What a sequence must generate, whatever happens to it on the way."""
    tokens = list(prompt)
    while len(tokens) < max_num_tokens:
        tokens.append(next_token(tuple(tokens)))
        if tokens[-1] in stop:
            break
    return tokens[len(prompt) :]


@dataclass
class _Slot:
    new: NewSequence
    token_ids: list[int]
    block_table: list[int] = field(default_factory=list)
    # The tokens from the root to each draft, parents first.
    drafts: list[tuple[int, ...]] = field(default_factory=list)
    finished: bool = False


class SimulatedShards:
    def __init__(
        self, *, num_blocks: int, block_size: int, most_depth: int, accept: float = 0.6, seed: int = 0
    ) -> None:
        self.block_size = block_size
        self.num_blocks = num_blocks
        self.most_depth = most_depth
        self.accept = accept
        self.random = random.Random(seed)
        self.slots: dict[int, _Slot] = {}
        self.content: dict[tuple[int, int], tuple[int, ...]] = {}
        self.queue: deque[StepPlan] = deque()
        self.last_step_id = 0

    def send(self, plan: StepPlan) -> None:
        assert plan.step_id == self.last_step_id + 1
        self.last_step_id = plan.step_id
        self.queue.append(plan)

    def reply(self) -> StepResult:
        """Runs the oldest plan only now: the router must not have relied on its outcome."""
        plan = self.queue.popleft()
        for slot in plan.released_slots:
            del self.slots[slot]
        for new in plan.new_sequences:
            assert new.slot not in self.slots, "a slot was given away twice"
            self.slots[new.slot] = _Slot(new, list(new.token_ids))
        results = [self._step(step) for step in plan.sequences]
        return StepResult(plan.step_id, [r for r in results if r is not None], duration_s=0.0)

    def _step(self, step: SequenceStep) -> SequenceResult | None:
        slot = self.slots[step.slot]
        slot.block_table += step.new_block_ids
        assert len(set(slot.block_table)) == len(slot.block_table)
        if slot.finished:
            return None
        drafts = slot.drafts[: 0 if step.chunk_length else step.verify]
        if step.chunk_length:
            end = step.chunk_start + step.chunk_length
            assert end <= len(slot.token_ids)
            self._read(slot, step.chunk_start)
            self._write(slot, step.chunk_start, end)
            if end < len(slot.token_ids):
                return None
            emitted, accepted = [next_token(tuple(slot.token_ids))], 0
        else:
            self._read(slot, len(slot.token_ids) - 1)
            emitted = self._verify(slot, drafts)
            accepted = sum(tuple(emitted[:depth]) in drafts for depth in range(1, len(emitted) + 1))
        start = len(slot.token_ids) - 1
        slot.token_ids += emitted
        if not step.chunk_length:
            self._write(slot, start, len(slot.token_ids) - 1)
        limit = slot.new.max_num_tokens
        slot.finished = slot.token_ids[-1] in slot.new.stop_token_ids or len(slot.token_ids) >= limit
        assert len(slot.token_ids) <= limit
        self._propose(slot, step.propose, min(step.propose_depth, limit - len(slot.token_ids) - 1))
        depths = [len(draft) for draft in drafts]
        counts = looked_up(depths, accepted, most_depth=self.most_depth) if drafts else []
        return SequenceResult(step.slot, emitted, [], len(drafts), accepted, counts)

    def _verify(self, slot: _Slot, drafts: list[tuple[int, ...]]) -> list[int]:
        tokens, start = list(slot.token_ids), len(slot.token_ids)
        while True:
            tokens.append(next_token(tuple(tokens)))
            ended = tokens[-1] in slot.new.stop_token_ids or len(tokens) >= slot.new.max_num_tokens
            if ended or tuple(tokens[start:]) not in drafts:
                return tokens[start:]

    def _propose(self, slot: _Slot, size: int, depth: int) -> None:
        slot.drafts = []
        for _ in range(self.random.randint(0, size) if depth > 0 else 0):
            above = self.random.choice([(), *(path for path in slot.drafts if len(path) < depth)])
            right = next_token((*slot.token_ids, *above))
            path = (*above, right if self.random.random() < self.accept else VOCABULARY + len(slot.drafts))
            if path not in slot.drafts:
                slot.drafts.append(path)

    def _read(self, slot: _Slot, end: int) -> None:
        for position in range(end):
            place = (slot.block_table[position // self.block_size], position % self.block_size)
            expected = tuple(slot.token_ids[: position + 1])
            assert self.content.get(place) == expected, f"position {position} of slot {slot.new.slot} holds another's"

    def _write(self, slot: _Slot, start: int, end: int) -> None:
        for position in range(start, end):
            block = slot.block_table[position // self.block_size]
            assert 1 <= block <= self.num_blocks
            self.content[block, position % self.block_size] = tuple(slot.token_ids[: position + 1])
