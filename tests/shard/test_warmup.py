"""The steps before the first request: what they run, and that their costs reach the router whatever the limits are."""

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from shard.plan import StepCost, StepPlan, StepResult
from shard.rank import Rank, build_rank
from shard.speculation import Proposal
from shard.warmup import _Kind, typical_costs
from tests.checkpoints import make_checkpoint
from tests.shard.configs import shard_config


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("model"))


def warmed_up(checkpoint: Path, monkeypatch: pytest.MonkeyPatch, *flags: str) -> tuple[list[StepPlan], list[StepCost]]:
    """The steps that were run and the costs that were found."""
    rank: Rank = build_rank(shard_config(checkpoint, "--dtype=float32", *flags))
    plans: list[StepPlan] = []
    launch = rank.runner.launch

    def recorded(plan: StepPlan) -> Callable[[], StepResult]:
        plans.append(plan)
        return launch(plan)

    monkeypatch.setattr(rank.runner, "launch", recorded)
    return plans, rank.warm_up()


def test_without_speculation_a_prompt_and_a_token_are_computed_and_no_costs_are_told(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans, costs = warmed_up(checkpoint, monkeypatch, "--speculate=0", "--max-total-tokens=200")
    assert costs == []
    assert any(step.chunk_length == 199 for plan in plans for step in plan.sequences)
    assert any(step.chunk_length == 0 for plan in plans for step in plan.sequences)


@pytest.mark.parametrize("max_total_tokens", [32, 64, 100, 1100, 2048])
@pytest.mark.parametrize("speculate", ["3", "auto"])
def test_short_contexts_have_costs_too(
    max_total_tokens: int, speculate: str, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = (f"--max-total-tokens={max_total_tokens}", f"--speculate={speculate}", "--max-batch-size=6")
    plans, costs = warmed_up(checkpoint, monkeypatch, *flags)
    plain = [cost for cost in costs if cost.rows == cost.sequences and not cost.proposal]
    assert all((cost.proposing_ns > 0) == bool(cost.proposal) for cost in costs)
    assert {cost.sequences for cost in plain} == {1, 2, 4, 6}
    # What checking drafts costs, and asking for them.
    assert {cost.sequences for cost in costs if cost.rows > cost.sequences} == {1, 2, 6}
    assert {cost.sequences for cost in costs if cost.proposal is Proposal.LOOKUP} == {1, 6}
    assert all(cost.duration_ns > 0 and cost.context < cost.sequences * max_total_tokens for cost in costs)
    # Costs of long contexts only where sequences can be long.
    assert any(cost.context > 1000 * cost.sequences for cost in costs) == (max_total_tokens > 1024 + 20)
    assert plans


@pytest.mark.parametrize("value", [1.0, float("nan"), 3e38])
def test_a_model_that_overflows_is_told(
    value: float, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    make_checkpoint(tmp_path)
    file, name = tmp_path / "model.safetensors", "model.layers.1.mlp.down_proj.weight"
    weights = load_file(file)
    save_file(weights | {name: torch.full_like(weights[name], value)}, file)
    with caplog.at_level(logging.WARNING):
        warmed_up(tmp_path, monkeypatch, "--speculate=0", "--max-total-tokens=100")
    assert ("logits are not all finite" in caplog.text) == (value != 1.0)


def _sweep(pace: float, disturbed: int | None = None) -> dict[_Kind, StepCost]:
    """Steps of 1, 4 and 8 sequences at 1, 2 and 4 ms; `disturbed` ones took ten times as long."""
    return {
        _Kind(n): StepCost(n, n, n, Proposal.NONE, int(pace * ms * 1e6 * (10 if n == disturbed else 1)))
        for n, ms in ((1, 1), (4, 2), (8, 4))
    }


def test_costs_are_those_of_a_typical_sweep_whatever_the_pace_of_each() -> None:
    sweeps = [_sweep(3.0), _sweep(1.0), _sweep(2.0), _sweep(2.0), _sweep(0.5)]
    # Steps of eight are taken in some sweeps only, and there at a fast pace.
    for sweep in (sweeps[0], sweeps[2], sweeps[3]):
        del sweep[_Kind(8)]
    sweeps = [sweeps[1], sweeps[4], *sweeps[:1], *sweeps[2:4]]
    assert [cost.duration_ns for cost in typical_costs(sweeps)] == pytest.approx([2e6, 4e6, 8e6])


def test_a_step_that_was_disturbed_does_not_count() -> None:
    costs = typical_costs([_sweep(1.0), _sweep(1.0, disturbed=8), _sweep(1.0)])
    assert [cost.duration_ns for cost in costs] == pytest.approx([1e6, 2e6, 4e6])


def test_making_drafts_takes_the_same_in_a_slow_sweep() -> None:
    def sweep(pace: float, proposing_ns: int) -> dict[_Kind, StepCost]:
        asking = _Kind(8, proposal=Proposal.LOOKUP)
        duration_ns = int(pace * 4e6) + proposing_ns
        return {**_sweep(pace), asking: StepCost(8, 8, 8, Proposal.LOOKUP, duration_ns, proposing_ns)}

    costs = typical_costs([sweep(1.0, 300_000), sweep(3.0, 320_000), sweep(2.0, 900_000)])
    assert [cost.duration_ns for cost in costs] == pytest.approx([2e6, 4e6, 8e6, 8.32e6])
    assert [cost.proposing_ns for cost in costs] == [0, 0, 0, 320_000]
