"""What the router says is what the shards hear, and the other way round."""

from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

import router.plan
import shard.plan
from drafthouse.v1 import sampling_pb2, shard_pb2
from router.draft_counts import METHODS
from router.proposal import Proposal
from router.sequence import SamplingParams
from router.step_costs import StepCost
from router.wire import costs_from_proto, plan_to_bytes, result_from_proto
from shard.speculation import Method
from shard.speculation import Proposal as ShardProposal
from shard.wire import costs_to_proto, plan_from_proto, result_to_proto

NUMBERS, TOKENS = st.integers(0, 1000), st.lists(st.integers(0, 2**20), min_size=1, max_size=4)
MOST_DEPTH = 3
NUM_COUNTS = 2 * len(Method) * MOST_DEPTH
# As float32 has them.
LOGPROBS, PROBABILITIES = st.floats(-50, 0, width=32), st.floats(0, 1, width=32)


@st.composite
def sequence_steps(draw: st.DrawFn) -> router.plan.SequenceStep:
    blocks = draw(st.lists(NUMBERS, max_size=3))
    return router.plan.SequenceStep(draw(NUMBERS), blocks, *(draw(NUMBERS) for _ in range(5)))


@st.composite
def sequence_results(draw: st.DrawFn) -> shard.plan.SequenceResult:
    token_ids = draw(TOKENS)
    logprobs = [draw(LOGPROBS) for _ in token_ids] if draw(st.booleans()) else []
    drafted = draw(st.integers(0, 5))
    counts = draw(st.lists(NUMBERS, min_size=NUM_COUNTS, max_size=NUM_COUNTS)) if drafted else []
    return shard.plan.SequenceResult(draw(NUMBERS), token_ids, logprobs, drafted, draw(NUMBERS), counts)


def test_methods_have_the_same_numbers_everywhere() -> None:
    named = [sampling_pb2.SpeculationMethod.Name(method.value) for method in Method]
    assert named == [f"SPECULATION_METHOD_{method.upper()}" for method in METHODS]


def test_proposals_have_the_numbers_of_the_wire() -> None:
    assert shard_pb2.Proposal.items() == [(f"PROPOSAL_{proposal.name}", proposal.value) for proposal in ShardProposal]


@given(st.lists(sequence_steps(), min_size=1, max_size=5))
def test_steps_arrive_as_they_were_planned(steps: list[router.plan.SequenceStep]) -> None:
    data = plan_to_bytes(router.plan.StepPlan(7, [3], [], steps), shard_incarnation=1, router_incarnation=2)
    plan = plan_from_proto(shard_pb2.VerifyRequest.FromString(data).plan)
    assert (plan.step_id, plan.released_slots, plan.sequences) == (7, [3], steps)


@given(st.lists(sequence_results(), max_size=5))
def test_results_arrive_as_they_were_reported(results: list[shard.plan.SequenceResult]) -> None:
    message = result_to_proto(shard.plan.StepResult(7, results, digest=1, duration_ns=5), session=(1, 2))
    got = result_from_proto(shard_pb2.StepResult.FromString(message.SerializeToString()), most_depth=MOST_DEPTH)
    # Who did not ask for logprobs has some where another did.
    asked = [
        one if sent.logprobs else one._replace(logprobs=[]) for one, sent in zip(got.sequences, results, strict=True)
    ]
    assert asked == results
    assert all(not one.logprobs or len(one.logprobs) == len(one.token_ids) for one in got.sequences)


def test_blocks_that_do_not_fit_are_no_plan() -> None:
    step = router.plan.SequenceStep(1, [7], 0, 0, 0, 0, 0)
    data = plan_to_bytes(router.plan.StepPlan(7, [], [], [step]), shard_incarnation=1, router_incarnation=2)
    message = shard_pb2.VerifyRequest.FromString(data).plan
    message.sequences.num_new_blocks[0] = 3
    with pytest.raises(ValueError, match="1 new blocks where 3"):
        plan_from_proto(message)


@st.composite
def new_sequences(draw: st.DrawFn) -> router.plan.NewSequence:
    temperature, top_p, min_p = (draw(PROBABILITIES) for _ in range(3))
    return router.plan.NewSequence(
        slot=draw(NUMBERS),
        token_ids=draw(TOKENS),
        sampling=SamplingParams(temperature, draw(NUMBERS), top_p, min_p, draw(st.integers(0, 2**64 - 1))),
        max_num_tokens=draw(NUMBERS),
        stop_token_ids=draw(st.frozensets(NUMBERS, max_size=3)),
        logprobs=draw(st.booleans()),
    )


@given(
    st.lists(new_sequences(), max_size=3),
    st.sampled_from(Proposal),
    st.lists(st.builds(router.plan.DraftPrice, NUMBERS, PROBABILITIES), max_size=4),
)
def test_new_sequences_and_prices_arrive_as_they_were_planned(
    new: list[router.plan.NewSequence], proposal: Proposal, prices: list[router.plan.DraftPrice]
) -> None:
    steps = [router.plan.SequenceStep(1, [7])]
    sent = router.plan.StepPlan(7, [], new, steps, proposal, tuple(prices))
    data = plan_to_bytes(sent, shard_incarnation=1, router_incarnation=2)
    plan = plan_from_proto(shard_pb2.PrefillRequest.FromString(data).plan)
    for got, one in zip(plan.new_sequences, new, strict=True):
        assert asdict(got.sampling) == asdict(one.sampling)
        assert (got.slot, got.token_ids, got.max_num_tokens) == (one.slot, one.token_ids, one.max_num_tokens)
        assert (got.stop_token_ids, got.logprobs) == (sorted(one.stop_token_ids), one.logprobs)
    assert plan.proposal.name == proposal.name
    assert [(price.first, price.probability) for price in plan.draft_prices] == [
        (price.first, price.probability) for price in prices
    ]


def test_costs_arrive_as_they_were_measured_and_drafts_are_paid_once() -> None:
    measured = [
        shard.plan.StepCost(2, 8, 30, proposal, duration_ns=5_000_000, proposing_ns=2_000_000)
        for proposal in ShardProposal
    ]
    got = costs_from_proto(shard_pb2.WarmupResponse(step_costs=costs_to_proto(measured)).step_costs)
    assert [cost.proposal.name for cost in got] == [proposal.name for proposal in ShardProposal]
    for cost in got:
        assert cost == StepCost(2, 8, 30, cost.proposal, seconds=pytest.approx(3e-3), proposing_s=pytest.approx(2e-3))


def test_times_of_a_step_arrive_as_they_were_reported() -> None:
    result = shard.plan.StepResult(7, [], digest=1, duration_ns=5_000_000, proposing_ns=2_000_000)
    got = result_from_proto(result_to_proto(result, session=(1, 2)), most_depth=MOST_DEPTH)
    assert (got.duration_s, got.proposing_s) == (pytest.approx(5e-3), pytest.approx(2e-3))
