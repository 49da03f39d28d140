"""Plans as a router might make them: sequences come and go, prompts come in chunks, some sit a step out."""

import random
from collections.abc import Iterator
from dataclasses import dataclass

from shard.plan import NewSequence, Sampling, SequenceResult, SequenceStep, StepPlan
from shard.speculation import DraftPrice, Proposal
from tests.shard.planned_runs import BLOCKS, FILTERED, GREEDY, SAMPLED

_MOST_TOKENS, _DEPTH = 16 * BLOCKS, 3


@dataclass(slots=True)
class _Live:
    new: NewSequence
    num_prefilled: int = 0
    num_tokens: int = 0
    is_done: bool = False


class RandomPlans:
    """`note` takes the results of each plan before the next is asked for."""

    def __init__(self, seed: int, *, num_slots: int, proposal: Proposal, tree_size: int) -> None:
        self._rng = random.Random(seed)
        self._num_slots = num_slots
        self._proposal = proposal
        self._tree_size = tree_size
        self._live: dict[int, _Live] = {}

    def plans(self, count: int) -> Iterator[StepPlan]:
        for step_id in range(1, 1 + count):
            released = [slot for slot, sequence in self._live.items() if sequence.is_done]
            for slot in released:
                del self._live[slot]
            new = self._arrivals([s for s in range(self._num_slots) if s not in self._live and s not in released])
            steps = [step for slot, sequence in self._live.items() if (step := self._step(slot, sequence))]
            steps.sort(key=lambda step: step.chunk_length > 0)
            proposal = self._proposal if self._rng.random() < 0.8 else Proposal.NONE
            prices = (DraftPrice(0, 0.01),) if self._rng.random() < 0.5 else ()
            if steps:
                yield StepPlan(step_id, released, new, steps, proposal, prices)

    def note(self, results: list[SequenceResult]) -> None:
        for result in results:
            sequence = self._live[result.slot]
            sequence.num_tokens += len(result.token_ids)
            is_stopped = result.token_ids[-1] in sequence.new.stop_token_ids
            sequence.is_done = is_stopped or sequence.num_tokens >= sequence.new.max_num_tokens

    def _arrivals(self, free: list[int]) -> list[NewSequence]:
        rng, new = self._rng, []
        for slot in rng.sample(free, min(len(free), rng.choice([0, 0, 1, 1, 2, self._num_slots]))):
            prompt = [rng.randrange(2, 17) for _ in range(rng.choice([1, 1, 2, 5, 17, 40]))]
            if rng.random() < 0.5:
                prompt = (3 * prompt)[:60]
            sampling: Sampling = rng.choice([GREEDY, GREEDY, SAMPLED, FILTERED])
            new.append(
                NewSequence(
                    slot=slot,
                    token_ids=prompt,
                    sampling=sampling,
                    max_num_tokens=min(_MOST_TOKENS, len(prompt) + rng.randrange(1, 25)),
                    stop_token_ids=[17, 18] if rng.random() < 0.3 else [],
                    logprobs=rng.random() < 0.2,
                )
            )
            self._live[slot] = _Live(new[-1], num_tokens=len(prompt))
        return new

    def _step(self, slot: int, sequence: _Live) -> SequenceStep | None:
        rng, start = self._rng, sequence.num_prefilled
        if missing := len(sequence.new.token_ids) - start:
            length = missing if rng.random() < 0.6 else rng.randint(1, missing)
            sequence.num_prefilled += length
            wants = length == missing
            blocks = [] if start else [1 + slot * BLOCKS + i for i in range(BLOCKS)]
            return SequenceStep(slot, blocks, start, length, 0, self._tree_size * wants, _DEPTH * wants)
        if rng.random() < 0.1:
            return None
        wants = rng.random() < 0.8
        return SequenceStep(slot, [], 0, 0, rng.randint(0, self._tree_size), self._tree_size * wants, _DEPTH * wants)
