"""What is learned of costs from the steps themselves."""

import random
from collections.abc import Callable

import pytest

from router.drift import Drift, TakenStep
from router.proposal import Proposal
from router.step_costs import StepCost, StepCosts

# 10 ms whatever the rows; asking is free, and a token of context takes a microsecond.
MEASURED = StepCosts(
    [StepCost(n, n, c, Proposal.NONE, 0.010 + c * 1e-6) for n in (1, 8, 64) for c in (0, 1000)]
    + [StepCost(1, 1, 0, proposal, 0.010) for proposal in (Proposal.LOOKUP, Proposal.HEADS)]
)


def run(
    seconds: Callable[[TakenStep], float],
    *,
    steps: int = 400,
    drift: Drift | None = None,
    drafts: int = 4,
    seed: int = 0,
) -> Drift:
    """Steps of four sequences whose drafts and proposals change by chance, seen with noise."""
    drift, chance = drift or Drift(MEASURED), random.Random(seed)
    for number in range(steps):
        asked = chance.choice([Proposal.NONE, Proposal.LOOKUP, Proposal.HEADS])
        step = TakenStep(4, chance.randrange(drafts + 1), 10 * number, asked, int(asked is not Proposal.NONE), 0.0)
        taken_s = seconds(step) * chance.uniform(0.97, 1.03) + (0.03 if chance.random() < 0.02 else 0.0)
        drift.observe(TakenStep(4, step.num_drafts, step.context, asked, step.num_asked, taken_s))
    return drift


def plain_s(step: TakenStep) -> float:
    return 0.010 + step.context * 1e-6


def test_nothing_is_learned_where_all_is_as_measured() -> None:
    drift = run(plain_s)
    assert drift.pace(4) == pytest.approx(1, abs=0.1)
    assert drift.draft_seconds(4) == pytest.approx(0, abs=0.0003)
    assert drift.proposal_seconds(Proposal.LOOKUP, 4) == pytest.approx(0, abs=0.0005)


def test_drafts_asking_and_pace_are_told_apart() -> None:
    def seconds(step: TakenStep) -> float:
        asking_s = 0.001 * step.asks(Proposal.LOOKUP) + 0.003 * step.asks(Proposal.HEADS)
        return plain_s(step) * 0.8 + 0.001 * step.num_drafts + asking_s

    drift = run(seconds)
    assert drift.pace(4) == pytest.approx(0.8, abs=0.1)
    assert drift.draft_seconds(4) == pytest.approx(0.001, abs=0.0003)
    assert drift.proposal_seconds(Proposal.LOOKUP, 4) == pytest.approx(0.001, abs=0.0006)
    assert drift.proposal_seconds(Proposal.HEADS, 4) == pytest.approx(0.003, abs=0.0008)
    # Alike are batches of about the same size.
    assert drift.draft_seconds(7) == drift.draft_seconds(4)
    assert drift.draft_seconds(8) == 0
    assert drift.pace(8) == 1


def test_what_drafts_cost_is_forgotten_where_none_are_checked() -> None:
    drift = run(lambda step: plain_s(step) + 0.001 * step.num_drafts)
    before = drift.draft_seconds(4)
    run(plain_s, drift=drift, drafts=0)
    assert drift.draft_seconds(4) < before / 4


def test_a_step_with_prompts_and_another_number_of_sequences_teach_nothing_about_drafts() -> None:
    drift = Drift(MEASURED)
    for _ in range(50):
        drift.observe(TakenStep(4, 0, 0, Proposal.NONE, 0, 0.010))
        drift.observe(None)
        drift.observe(TakenStep(4, 8, 0, Proposal.NONE, 0, 0.030))
        drift.observe(TakenStep(5, 0, 0, Proposal.NONE, 0, 0.010))
    assert drift.draft_seconds(4) == 0


def test_without_measurements_nothing_is_learned() -> None:
    drift = run(plain_s, drift=Drift(StepCosts()))
    assert drift.pace(4) == 1
    assert drift.draft_seconds(4) == 0
