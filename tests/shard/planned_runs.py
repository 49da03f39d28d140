"""Plans for a few sequences until all have ended, for tests that hold one way of running steps to another."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from shard.model_runner import ModelRunner
from shard.plan import NewSequence, Sampling, SequenceResult, SequenceStep, StepPlan, StepResult
from shard.rank import Rank, build_rank
from shard.speculation import DraftPrice, Proposal
from tests.checkpoints import make_checkpoint
from tests.medusa_checkpoints import random_heads, write_heads
from tests.shard.configs import shard_config

GREEDY = Sampling(temperature=0.0, top_k=0, top_p=1.0, min_p=0.0, seed=0)
SAMPLED = Sampling(temperature=0.8, top_k=0, top_p=1.0, min_p=0.0, seed=5)
FILTERED = Sampling(temperature=1.2, top_k=8, top_p=0.9, min_p=0.01, seed=6)
# Few tokens, so that a guess is right now and then.
VOCAB = 19
PROMPTS = [[5, 6, 7, 8] * 4, [9, 10, 11] * 3, [*range(2, 17), *range(2, 17)], [3, 4] * 5]
LIMITS = [40, 24, 60, 33]
BLOCKS = 6
# What sequences are sampled with, and whether heads are asked for drafts or lookup.
CASES = [
    (samplings, with_heads)
    for samplings in ([GREEDY] * 4, [GREEDY, SAMPLED, FILTERED, GREEDY])
    for with_heads in (False, True)
]
CASE_IDS = ["greedy lookup", "greedy heads", "sampled lookup", "sampled heads"]


@dataclass
class Run:
    """Plans for four sequences in four slots until all have ended, and one step more."""

    runner: ModelRunner
    proposal: Proposal
    samplings: list[Sampling]
    launch: Callable[[StepPlan], Callable[[], StepResult]]
    # Of log-probabilities.
    digits: int
    # What each step said.
    proposing_ns: list[int] = field(default_factory=list)

    def results(self) -> list[list[SequenceResult]]:
        lengths = [len(prompt) for prompt in PROMPTS]
        # The third prompt comes in two chunks, the second of them beside the others' first tokens.
        chunks = [(slot, 0, length if slot != 2 else 20) for slot, length in enumerate(lengths)]
        new = [self._new(slot) for slot in range(4)]
        steps = [self._step(slot, start, length, self._blocks(slot)) for slot, start, length in chunks]
        results = [self._run(StepPlan(1, [], new, steps, self.proposal))]
        for step_id in range(2, 60):
            steps = [self._step(slot) for slot in range(4)]
            if step_id == 2:
                steps[2] = self._step(2, 20, lengths[2] - 20)
            # Nobody is asked at every fifth step, and one sequence never.
            proposal = Proposal.NONE if step_id % 5 == 0 else self.proposal
            prices = (DraftPrice(0, 0.01), DraftPrice(6, 0.2)) if step_id % 2 else ()
            results.append(self._run(StepPlan(step_id, [], [], steps, proposal, prices)))
        return results

    def _run(self, plan: StepPlan) -> list[SequenceResult]:
        result = self.launch(plan)()
        self.proposing_ns.append(result.proposing_ns)
        return in_digits(result, self.digits)

    def _new(self, slot: int) -> NewSequence:
        return NewSequence(
            slot=slot,
            token_ids=PROMPTS[slot],
            sampling=self.samplings[slot],
            max_num_tokens=LIMITS[slot],
            stop_token_ids=[17, 18] if slot == 3 else [],
            logprobs=slot == 1,
        )

    def _blocks(self, slot: int) -> list[int]:
        return [1 + slot + 4 * i for i in range(BLOCKS)]

    def _step(self, slot: int, start: int = 0, length: int = 0, blocks: list[int] | None = None) -> SequenceStep:
        asks, size = slot != 0, min(5, self.runner.states.draft_token_ids.shape[1])
        return SequenceStep(
            slot,
            blocks or [],
            chunk_start=start,
            chunk_length=length,
            verify=0 if length else size,
            propose=size * asks,
            propose_depth=3 * asks,
        )


def in_digits(result: StepResult, digits: int) -> list[SequenceResult]:
    """Sums over rows that are not there are not the same to the last bit."""
    return [r._replace(logprobs=[round(value, digits) for value in r.logprobs]) for r in result.sequences]


@dataclass(frozen=True)
class Case:
    """A model, its heads if they are asked, and what its sequences are sampled with."""

    samplings: list[Sampling]
    proposal: Proposal
    model: Path
    flags: list[str]

    @classmethod
    def make(cls, folder: Path, samplings: list[Sampling], with_heads: bool) -> "Case":
        model, heads = make_checkpoint(folder / "model", vocab=VOCAB, dtype=torch.float64), folder / "heads"
        if not with_heads:
            return cls(samplings, Proposal.LOOKUP, model, [])
        heads.mkdir()
        write_heads(heads, random_heads(3, 1, 72, VOCAB, tied=False), "v1", base=str(model))
        return cls(samplings, Proposal.HEADS, model, [f"--medusa-path={heads}"])

    def rank(self, dtype: str = "float64", *, num_slots: int = 4) -> Rank:
        sizes = "--speculate=3", "--max-total-tokens=96", f"--max-batch-size={num_slots}"
        tokens = f"--max-batch-total-tokens={120 * num_slots}"
        return build_rank(shard_config(self.model, *self.flags, *sizes, tokens, f"--dtype={dtype}"))

    def run(
        self,
        runner: ModelRunner,
        launch: Callable[[StepPlan], Callable[[], StepResult]] | None = None,
        *,
        digits: int = 9,
    ) -> Run:
        return Run(runner, self.proposal, self.samplings, launch or runner.launch, digits)
