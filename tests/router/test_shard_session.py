"""What a session with ranks hands on of their replies, through the engine as tests/router/test_engine.py has it."""

from pathlib import Path

import pytest

from drafthouse.v1 import shard_pb2
from tests.engines import generation_request as request
from tests.engines import run, service
from tests.router.fake_shard import FakeGroup, FakeShards
from tests.router.simulated_shards import continuation


def expected(prompt: list[int], new: int) -> list[int]:
    return continuation(prompt, max_num_tokens=len(prompt) + new, stop=frozenset())


def cost(rows: int, ms: float, *, sequences: int | None = None) -> shard_pb2.StepCost:
    return shard_pb2.StepCost(
        sequences=sequences or rows,
        rows=rows,
        context=64 * (sequences or rows),
        proposal=shard_pb2.PROPOSAL_LOOKUP,
        duration_ns=round(ms * 1e6),
        proposing_ns=10_000,
    )


def test_what_the_warm_up_measured_prices_the_drafts_of_every_plan(tmp_path: Path) -> None:
    group = FakeGroup(latency_s=0.01)
    group.costs = [cost(1, 10.01), cost(2, 10.11), cost(4, 10.51), cost(8, 14.51), cost(4, 10.51, sequences=1)]

    async def scenario() -> None:
        async with FakeShards(tmp_path, group), service(tmp_path) as s:
            await s.ready()
            assert await s.tokens(request([1, 2, 3], new=12, k=3)) == expected([1, 2, 3], 12)

    run(scenario)
    asked = [plan for plan in group.plans if any(plan.sequences.propose)]
    assert asked
    for plan in asked:
        assert plan.proposal == shard_pb2.PROPOSAL_LOOKUP
        # Beside one row: the second, the third and fourth, the fifth to eighth, and what is behind them.
        assert [price.first for price in plan.draft_prices] == [0, 1, 3, 7]
        first, second, third, last = (price.probability for price in plan.draft_prices)
        assert 0 < first < second < third == pytest.approx(last)
    assert not any(plan.draft_prices for plan in group.plans if plan not in asked)


def test_without_costs_drafts_are_free(tmp_path: Path) -> None:
    group = FakeGroup()

    async def scenario() -> None:
        async with FakeShards(tmp_path, group), service(tmp_path) as s:
            await s.ready()
            assert await s.tokens(request([1, 2, 3], new=12, k=3)) == expected([1, 2, 3], 12)

    run(scenario)
    prices = {tuple((p.first, p.probability) for p in plan.draft_prices) for plan in group.plans}
    assert prices == {(), ((0, 0.0),)}


@pytest.mark.parametrize("odd", ["shard_incarnation", "router_incarnation"])
def test_a_reply_of_another_incarnation_is_dropped(odd: str, tmp_path: Path) -> None:
    group = FakeGroup()

    async def scenario() -> None:
        async with FakeShards(tmp_path, group), service(tmp_path) as s:
            await s.ready()
            incarnations = {"shard_incarnation": group.incarnation, "router_incarnation": group.warmups[-1]}
            tokens = shard_pb2.SequenceResults(slots=[0], num_tokens=[1], drafted=[0], accepted=[0], token_ids=[63])
            group.strays = [
                shard_pb2.StepResult(
                    step_id=1, digest=1, sequences=tokens, **incarnations | {odd: incarnations[odd] ^ 1}
                )
            ]
            assert await s.tokens(request([5, 6], new=8)) == expected([5, 6], 8)
            assert group.strays == []
            assert group.aborts == []

    run(scenario)


def test_what_is_dropped_would_have_counted(tmp_path: Path) -> None:
    """Else the test above shows nothing."""
    group = FakeGroup()

    async def scenario() -> None:
        async with FakeShards(tmp_path, group), service(tmp_path) as s:
            await s.ready()
            tokens = shard_pb2.SequenceResults(slots=[0], num_tokens=[1], drafted=[0], accepted=[0], token_ids=[63])
            own = {"shard_incarnation": group.incarnation, "router_incarnation": group.warmups[-1]}
            group.strays = [shard_pb2.StepResult(step_id=1, digest=1, sequences=tokens, **own)]
            assert (await s.tokens(request([5, 6], new=1))) == [63]

    run(scenario)
