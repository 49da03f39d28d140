"""What is learned of costs from the steps themselves."""

import random
from collections.abc import Callable
from dataclasses import replace

import pytest

from router.current_costs import CurrentCosts, TakenStep
from router.proposal import Proposal
from router.step_costs import StepCost, StepCosts

# 10 ms whatever the rows; asking takes 2 ms, and a token of context a microsecond.
MEASURED = StepCosts(
    [StepCost(n, n, c, Proposal.NONE, 0.010 + c * 1e-6) for n in (1, 8, 64) for c in (0, 1000)]
    + [StepCost(1, 1, 0, proposal, 0.010, 0.002) for proposal in (Proposal.LOOKUP, Proposal.HEADS)]
)


ASKING_S = {Proposal.NONE: 0.0, Proposal.LOOKUP: 0.002, Proposal.HEADS: 0.002}


def run(
    seconds: Callable[[TakenStep], float],
    *,
    asking_s: dict[Proposal, float] = ASKING_S,
    steps: int = 400,
    costs: CurrentCosts | None = None,
    drafts: int = 4,
    seed: int = 0,
) -> CurrentCosts:
    """Steps of four sequences whose drafts and proposals change by chance, seen with noise."""
    costs, chance = costs or CurrentCosts(MEASURED), random.Random(seed)
    for number in range(steps):
        asked = chance.choice([Proposal.NONE, Proposal.LOOKUP, Proposal.HEADS])
        step = TakenStep(4, chance.randrange(drafts + 1), 10 * number, asked, int(asked is not Proposal.NONE), 0.0)
        taken_s = seconds(step) * chance.uniform(0.97, 1.03) + (0.03 if chance.random() < 0.02 else 0.0)
        proposing_s = asking_s[asked] * chance.uniform(0.8, 1.2)
        costs.observe(replace(step, seconds=taken_s, proposing_s=proposing_s))
    return costs


def plain_s(step: TakenStep) -> float:
    return 0.010 + step.context * 1e-6


def test_nothing_is_learned_where_all_is_as_measured() -> None:
    costs = run(plain_s)
    assert costs.seconds(4, 0) == pytest.approx(0.010, abs=0.001)
    assert costs.draft_seconds(4, 1) == pytest.approx(0, abs=0.0003)
    assert costs.proposal_seconds(Proposal.LOOKUP, 4, 2) == pytest.approx(0.002, abs=0.0002)


def test_drafts_asking_and_pace_are_told_apart() -> None:
    def seconds(step: TakenStep) -> float:
        return plain_s(step) * 0.8 + 0.001 * step.num_drafts

    costs = run(seconds, asking_s={Proposal.NONE: 0.0, Proposal.LOOKUP: 0.001, Proposal.HEADS: 0.004})
    assert costs.seconds(4, 0) == pytest.approx(0.008, abs=0.001)
    assert costs.draft_seconds(4, 3) == pytest.approx(0.003, abs=0.001)
    assert costs.proposal_seconds(Proposal.LOOKUP, 4, 2) == pytest.approx(0.001, abs=0.0003)
    assert costs.proposal_seconds(Proposal.HEADS, 4, 2) == pytest.approx(0.004, abs=0.0003)
    # Alike are batches of about the same size.
    assert costs.draft_seconds(7, 1) == costs.draft_seconds(4, 1)
    assert costs.draft_seconds(8, 1) == 0
    assert costs.seconds(8, 0) == pytest.approx(0.010)


def test_what_drafts_cost_is_forgotten_where_none_are_checked() -> None:
    costs = run(lambda step: plain_s(step) + 0.001 * step.num_drafts)
    before = costs.draft_seconds(4, 1)
    run(plain_s, costs=costs, drafts=0)
    assert costs.draft_seconds(4, 1) < before / 4


def test_a_step_with_prompts_and_another_number_of_sequences_teach_nothing_about_drafts() -> None:
    costs = CurrentCosts(MEASURED)
    for _ in range(50):
        costs.observe(TakenStep(4, 0, 0, Proposal.NONE, 0, 0.010))
        costs.observe(None)
        costs.observe(TakenStep(4, 8, 0, Proposal.NONE, 0, 0.030))
        costs.observe(TakenStep(5, 0, 0, Proposal.NONE, 0, 0.010))
    assert costs.draft_seconds(4, 1) == 0


def test_without_measurements_nothing_is_learned() -> None:
    costs = run(plain_s, costs=CurrentCosts(StepCosts()))
    assert costs.seconds(4, 0) == 0
    assert costs.draft_seconds(4, 1) == 0
