import re

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from router.metrics import Metrics
from router.observer import Observer
from router.proposal import Proposal
from router.step_costs import StepCost, StepCosts
from tests.processes import assert_promtool_accepts
from tests.router.documented_metrics import DOCUMENTED

COSTS = StepCosts(
    [
        StepCost(1, 1, 0, Proposal.NONE, 0.010),
        StepCost(8, 8, 0, Proposal.NONE, 0.020),
        StepCost(8, 8, 1000, Proposal.NONE, 0.030),
        StepCost(8, 8, 0, Proposal.LOOKUP, 0.020, 0.001),
    ]
)


@pytest.fixture
def exposition() -> str:
    metrics = Metrics()
    Observer(metrics, num_shards=2).set_shards_up(False)
    metrics.prepare(speculation_methods=["ngram"], max_speculative_tokens=3)
    metrics.show_costs(COSTS)
    return generate_latest(metrics.registry).decode()


def test_names_types_and_labels_are_the_documented_ones(exposition: str) -> None:
    found = {
        family.name: (family.type, {label for sample in family.samples for label in sample.labels} - {"le"})
        for family in text_string_to_metric_families(exposition)
        if not family.name.startswith("process_")
    }
    assert found == DOCUMENTED


def test_every_bounded_series_exists_before_anything_happened(exposition: str) -> None:
    for series in (
        'drafthouse_requests_total{status="overloaded"} 0.0',
        'drafthouse_shard_up{rank="1"} 0.0',
        'drafthouse_kv_blocks{state="cached"} 0.0',
        'drafthouse_step_duration_seconds_count{phase="verify"} 0.0',
        'drafthouse_speculation_accepted_tokens_total{method="ngram",position="3"} 0.0',
        "drafthouse_shard_restarts_total 0.0",
    ):
        assert series in exposition
    assert 'position="4"' not in exposition
    assert 'position="0"' not in exposition


def test_names_follow_prometheus_rules(exposition: str) -> None:
    for family in text_string_to_metric_families(exposition):
        assert re.fullmatch(r"[a-z][a-z0-9_]*[a-z0-9]", family.name)
        assert family.documentation.endswith(".")
        assert not family.name.endswith(("_total", "_count", "_sum", "_bucket", "_info"))
        assert not re.search(r"_(ms|milliseconds|minutes|kb|percent)$", family.name)
        assert not any(sample.name.endswith("_created") for sample in family.samples)
        if family.type == "counter" and not family.name.startswith("process_"):
            assert all(sample.name == f"{family.name}_total" for sample in family.samples)
        if family.type == "histogram":
            assert family.name.endswith("_seconds")
            bounds = [float(s.labels["le"]) for s in family.samples if s.name.endswith("_bucket")]
            assert bounds[-1] == float("inf")


def test_promtool_finds_nothing_to_say(exposition: str) -> None:
    assert_promtool_accepts(exposition)


def test_costs_are_those_of_the_session() -> None:
    metrics = Metrics()
    metrics.show_costs(COSTS)
    value = metrics.registry.get_sample_value
    assert value("drafthouse_step_cost_seconds", {"rows": "8"}) == pytest.approx(0.020)
    assert value("drafthouse_context_token_cost_seconds") == pytest.approx(1e-5)
    cost = value("drafthouse_proposal_cost_seconds", {"proposal": "lookup", "sequences": "8"})
    assert cost == pytest.approx(0.001)
    metrics.show_costs(StepCosts())
    assert value("drafthouse_step_cost_seconds", {"rows": "8"}) is None


def test_drafts_are_counted_by_how_far_they_reach() -> None:
    metrics = Metrics()
    metrics.prepare(speculation_methods=["ngram"], max_speculative_tokens=3)
    metrics.count_speculation("ngram", [1, 1, 1], [1, 0, 0], num_sequences=1)
    # Of two trees.
    metrics.count_speculation("ngram", [3, 1, 0], [1, 1, 0], num_sequences=2)
    value = metrics.registry.get_sample_value
    assert value("drafthouse_speculation_steps_total", {"method": "ngram"}) == 3
    for position, drafted, accepted in (("1", 4, 2), ("2", 2, 1), ("3", 1, 0)):
        labels = {"method": "ngram", "position": position}
        assert value("drafthouse_speculation_drafted_tokens_total", labels) == drafted
        assert value("drafthouse_speculation_accepted_tokens_total", labels) == accepted
