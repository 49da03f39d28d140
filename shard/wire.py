"""Between protobuf messages and the shard's own types, whose enums have the numbers of the wire's. Beside it only the
server, and the rank that says what it is, know the messages."""

from itertools import accumulate, chain

from drafthouse.v1 import sampling_pb2, shard_pb2
from shard.plan import NewSequence, Sampling, SequenceResult, SequenceStep, StepCost, StepPlan, StepResult
from shard.speculation import DraftPrice, Method, Proposal


def methods_to_proto(methods: list[Method]) -> list[sampling_pb2.SpeculationMethod.ValueType]:
    return [sampling_pb2.SpeculationMethod.ValueType(method) for method in methods]


def plan_from_proto(plan: shard_pb2.StepPlan) -> StepPlan:
    return StepPlan(
        step_id=plan.step_id,
        released_slots=list(plan.released_slots),
        new_sequences=[_new_sequence(new) for new in plan.new_sequences],
        sequences=_sequence_steps(plan.sequences),
        proposal=Proposal(plan.proposal),
        draft_prices=tuple(DraftPrice(price.first, price.probability) for price in plan.draft_prices),
    )


def _sequence_steps(steps: shard_pb2.SequenceSteps) -> list[SequenceStep]:
    block_ids = list(steps.new_block_ids)
    if len(block_ids) != (number := sum(steps.num_new_blocks)):
        raise ValueError(f"{len(block_ids)} new blocks where {number} were said to come")
    return [
        SequenceStep(slot, block_ids[end - number : end], *others)
        for slot, number, end, *others in zip(
            steps.slots,
            steps.num_new_blocks,
            accumulate(steps.num_new_blocks),
            steps.chunk_starts,
            steps.chunk_lengths,
            steps.verify,
            steps.propose,
            steps.propose_depths,
            strict=True,
        )
    ]


def _new_sequence(new: shard_pb2.NewSequence) -> NewSequence:
    sampling = new.sampling
    return NewSequence(
        slot=new.slot,
        token_ids=list(new.token_ids),
        sampling=Sampling(
            temperature=sampling.temperature,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
            min_p=sampling.min_p,
            seed=sampling.seed,
        ),
        max_num_tokens=new.max_num_tokens,
        stop_token_ids=list(new.stop_token_ids),
        logprobs=new.logprobs,
    )


def costs_to_proto(costs: list[StepCost]) -> list[shard_pb2.StepCost]:
    return [
        shard_pb2.StepCost(
            sequences=c.sequences,
            rows=c.rows,
            context=c.context,
            proposal=shard_pb2.Proposal.ValueType(c.proposal),
            duration_ns=c.duration_ns,
            proposing_ns=c.proposing_ns,
        )
        for c in costs
    ]


def result_to_proto(result: StepResult, *, session: tuple[int, int]) -> shard_pb2.StepResult:
    """`session` is the incarnation of the shard group and of the router."""
    return shard_pb2.StepResult(
        step_id=result.step_id,
        shard_incarnation=session[0],
        router_incarnation=session[1],
        digest=result.digest,
        duration_ns=result.duration_ns,
        proposing_ns=result.proposing_ns,
        sequences=_sequence_results(result.sequences) if result.sequences else None,
    )


def _sequence_results(results: list[SequenceResult]) -> shard_pb2.SequenceResults:
    slots, token_ids, logprobs, drafted, accepted, draft_counts = zip(*results, strict=True)
    if any(logprobs):
        logprobs = tuple(each or [0.0] * len(tokens) for each, tokens in zip(logprobs, token_ids, strict=True))
    return shard_pb2.SequenceResults(
        slots=slots,
        num_tokens=map(len, token_ids),
        drafted=drafted,
        accepted=accepted,
        token_ids=chain.from_iterable(token_ids),
        logprobs=chain.from_iterable(logprobs),
        draft_counts=chain.from_iterable(draft_counts),
    )
