"""Steps of made-up sequences, for what must be known before the first request. Contexts are not computed: what their
blocks hold is of no meaning.

Must not know what the steps are run for.
"""

from collections.abc import Callable

import torch

from shard.config import ShardConfig
from shard.host_copy import integers
from shard.model_runner import ModelRunner
from shard.plan import NewSequence, Sampling, SequenceStep, StepPlan, StepResult
from shard.speculation import DraftTree, Proposal
from shard.speculation.drafter import SpeculationSizes

_GREEDY = Sampling(temperature=0.0, top_k=0, top_p=1.0, min_p=0.0, seed=0)


class MadeUpSteps:
    """Begins with a runner that has forgotten everything, and leaves it so after `forget`."""

    def __init__(
        self,
        runner: ModelRunner,
        config: ShardConfig,
        *,
        sizes: SpeculationSizes,
        on_step: Callable[[], None] = lambda: None,
    ) -> None:
        """`on_step` is called where a step begins."""
        self._runner = runner
        self._config = config
        self._num_blocks = runner.step.cache.num_blocks
        self._vocab_size = runner.step.vocab_size
        self._sizes = sizes
        self._on_step = on_step
        self._step_id = 0
        self.forget()

    def forget(self) -> None:
        self._runner.reset()

    def prefill(self, *, context: int, length: int, logprobs: bool = False) -> StepResult:
        """A chunk of one prompt, `length` tokens behind `context`; the sequence stays."""
        total = context + length
        return self._run([self._new(0, total, logprobs=logprobs)], [self._chunk(0, context, length, total)])

    def enter(
        self, num_sequences: int, *, context: int, room: int, sampling: Sampling = _GREEDY, logprobs: bool = False
    ) -> None:
        """Sequences in the first slots, of `context` tokens each, with blocks for `room` more."""
        slots = range(num_sequences)
        self._run(
            [self._new(slot, context, sampling, logprobs) for slot in slots],
            [self._chunk(slot, context - 1, 1, context + room) for slot in slots],
        )

    def decode(self, drafts: list[int], proposal: Proposal) -> StepResult:
        """A token of each of the first sequences, with so many wrong drafts each."""
        return self.launch_decode(drafts, proposal)()

    def prefill_beside(
        self, drafts: list[int], prompts: list[int], *, sampling: Sampling = _GREEDY, logprobs: bool = False
    ) -> StepResult:
        """Whole prompts of these lengths in the slots behind the first ones, which decode, with so many wrong drafts
        each."""
        lengths = dict(enumerate(prompts, len(drafts)))
        new = [self._new(slot, length, sampling, logprobs) for slot, length in lengths.items()]
        chunks = [self._chunk(slot, 0, length, length) for slot, length in lengths.items()]
        return self._run(new, [*self._decodes(drafts, Proposal.NONE), *chunks])

    def launch_decode(self, drafts: list[int], proposal: Proposal) -> Callable[[], StepResult]:
        """The same as `ModelRunner.launch`: the next may be launched before this one is waited for."""
        return self._launch([], self._decodes(drafts, proposal), proposal)

    def _decodes(self, drafts: list[int], proposal: Proposal) -> list[SequenceStep]:
        """And what they are to verify is made up."""
        if any(drafts):
            states = self._runner.states
            states.set_drafts(torch.arange(len(drafts), device=states.device), self._wrong(drafts))
        is_asked = proposal is not Proposal.NONE
        return [
            SequenceStep(
                slot,
                [],
                chunk_start=0,
                chunk_length=0,
                verify=count,
                propose=self._sizes.tree_size if is_asked else 0,
                propose_depth=self._sizes.num_speculative_tokens if is_asked else 0,
            )
            for slot, count in enumerate(drafts)
        ]

    def _run(self, new: list[NewSequence], steps: list[SequenceStep]) -> StepResult:
        return self._launch(new, steps, Proposal.NONE)()

    def _launch(
        self, new: list[NewSequence], steps: list[SequenceStep], proposal: Proposal
    ) -> Callable[[], StepResult]:
        self._step_id += 1
        self._on_step()
        return self._runner.launch(StepPlan(self._step_id, [], new, steps, proposal))

    def _new(self, slot: int, num_tokens: int, sampling: Sampling = _GREEDY, logprobs: bool = False) -> NewSequence:
        return NewSequence(
            slot=slot,
            token_ids=[(7 * slot + position) % self._vocab_size for position in range(num_tokens)],
            sampling=sampling,
            max_num_tokens=self._config.max_total_tokens,
            stop_token_ids=[],
            logprobs=logprobs,
        )

    def _chunk(self, slot: int, start: int, length: int, most_tokens: int) -> SequenceStep:
        """With blocks for `most_tokens`, if a sequence can have so many; shared only where there are too few."""
        count = min(most_tokens, self._config.max_total_tokens) // self._config.block_size + 1
        blocks = [1 + (slot * count + i) % self._num_blocks for i in range(count)]
        return SequenceStep(slot, blocks, start, length, verify=0, propose=0, propose_depth=0)

    def _wrong(self, drafts: list[int]) -> DraftTree:
        """Drafts that no text asks for, each a child of the last token but the first few, which are a chain."""
        size, deepest = self._sizes.tree_size, self._sizes.num_speculative_tokens
        device = self._runner.states.device
        token_ids = (
            torch.arange(self._vocab_size - 1, self._vocab_size - 1 - size, -1, device=device) % self._vocab_size
        )
        parents = integers([i if i < deepest else 0 for i in range(size)], device)
        shape = len(drafts), size
        return DraftTree(token_ids.expand(shape), parents.expand(shape), integers(drafts, device))
