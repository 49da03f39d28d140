"""What a runner knows of a sequence ends with it: whoever has its slot next begins anew."""

import pytest

from shard.model_runner import ModelRunner
from shard.plan import NewSequence, SequenceResult, SequenceStep, StepPlan
from shard.speculation import DraftPrice, Proposal
from tests.shard.planned_runs import GREEDY, PROMPTS, Case

FIRST, SECOND = PROMPTS[0], PROMPTS[2]


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> ModelRunner:
    return Case.make(tmp_path_factory.mktemp("case"), [GREEDY] * 4, with_heads=False).rank().runner


def answer(
    runner: ModelRunner, slot: int, prompt: list[int], *, price: float, begin: int, released: list[int]
) -> list[SequenceResult]:
    """Of one sequence alone, in steps from `begin` on."""
    new = NewSequence(slot, prompt, GREEDY, len(prompt) + 40, [], logprobs=False)
    blocks = [1 + slot + 4 * i for i in range(6)]
    results: list[SequenceResult] = []
    for step_id in range(begin, begin + 41):
        is_first = step_id == begin
        chunk = (0, len(prompt)) if is_first else (0, 0)
        step = SequenceStep(slot, blocks if is_first else [], *chunk, 0 if is_first else 3, 3, 3)
        plan = StepPlan(
            step_id,
            released if is_first else [],
            [new] if is_first else [],
            [step],
            Proposal.LOOKUP,
            (DraftPrice(0, price),),
        )
        results += runner.launch(plan)().sequences
    return results


def test_what_lookup_was_worth_in_a_text_is_not_held_against_the_next_one_in_its_slot(runner: ModelRunner) -> None:
    # Which drafts are worth their price depends on it.
    for price in (0.1, 0.4):
        answers = []
        for slot in (0, 1):
            runner.reset()
            answer(runner, 0, FIRST, price=0.0, begin=1, released=[])
            got = answer(runner, slot, SECOND, price=price, begin=50, released=[0])
            answers.append([result._replace(slot=0) for result in got])
        assert answers[0] == answers[1]
        assert sum(len(result.token_ids) for result in answers[0]) == 40
