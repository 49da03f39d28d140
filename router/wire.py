"""Between the router's own types and the messages of ShardService. Beside it only shard_group knows them."""

from collections.abc import Iterable

from drafthouse.v1 import sampling_pb2, shard_pb2
from router.plan import DraftCounts, NewSequence, SequenceResult, SequenceStep, StepPlan, StepResult
from router.proposal import Proposal
from router.step_costs import StepCost

_METHOD: dict[sampling_pb2.SpeculationMethod.ValueType, str] = {
    sampling_pb2.SPECULATION_METHOD_UNSPECIFIED: "none",
    sampling_pb2.SPECULATION_METHOD_NGRAM: "ngram",
    sampling_pb2.SPECULATION_METHOD_MEDUSA: "medusa",
    sampling_pb2.SPECULATION_METHOD_NGRAM_AND_MEDUSA: "ngram_and_medusa",
}

_PROPOSAL: dict[shard_pb2.Proposal.ValueType, Proposal] = {
    shard_pb2.PROPOSAL_NONE: Proposal.NONE,
    shard_pb2.PROPOSAL_LOOKUP: Proposal.LOOKUP,
    shard_pb2.PROPOSAL_HEADS: Proposal.HEADS,
}
_TO_PROPOSAL = {proposal: value for value, proposal in _PROPOSAL.items()}


def costs_from_proto(costs: Iterable[shard_pb2.StepCost]) -> list[StepCost]:
    return [
        StepCost(
            c.sequences,
            c.rows,
            c.context,
            _PROPOSAL[c.proposal],
            seconds=(c.duration_ns - c.proposing_ns) * 1e-9,
            proposing_s=c.proposing_ns * 1e-9,
        )
        for c in costs
    ]


def methods_from_proto(methods: Iterable[sampling_pb2.SpeculationMethod.ValueType]) -> tuple[str, ...]:
    return tuple(_METHOD[method] for method in methods)


def plan_to_bytes(plan: StepPlan, *, shard_incarnation: int, router_incarnation: int) -> bytes:
    """One serialization for every rank and every stream: the three step requests have the same single field."""
    message = shard_pb2.StepPlan(
        step_id=plan.step_id,
        shard_incarnation=shard_incarnation,
        router_incarnation=router_incarnation,
        released_slots=plan.released_slots,
        new_sequences=[_new_sequence(new) for new in plan.new_sequences],
        sequences=[_sequence_step(step) for step in plan.sequences],
        proposal=_TO_PROPOSAL[plan.proposal],
        draft_prices=[
            shard_pb2.DraftPrice(first=price.first, probability=price.probability) for price in plan.draft_prices
        ],
    )
    return shard_pb2.PrefillRequest(plan=message).SerializeToString()


def _new_sequence(new: NewSequence) -> shard_pb2.NewSequence:
    sampling = new.sampling
    return shard_pb2.NewSequence(
        slot=new.slot,
        token_ids=new.token_ids,
        sampling=sampling_pb2.SamplingParams(
            temperature=sampling.temperature,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
            min_p=sampling.min_p,
            seed=sampling.seed,
        ),
        max_num_tokens=new.max_num_tokens,
        stop_token_ids=sorted(new.stop_token_ids),
        logprobs=new.logprobs,
    )


def _sequence_step(step: SequenceStep) -> shard_pb2.SequenceStep:
    return shard_pb2.SequenceStep(
        slot=step.slot,
        new_block_ids=step.new_block_ids,
        chunk_start=step.chunk_start,
        chunk_length=step.chunk_length,
        verify=step.verify,
        propose=step.propose,
        propose_depth=step.propose_depth,
    )


def result_from_proto(result: shard_pb2.StepResult) -> StepResult:
    """KeyError or ValueError for what a shard of this version does not say."""
    return StepResult(
        step_id=result.step_id,
        sequences=[
            SequenceResult(
                slot=s.slot,
                token_ids=list(s.token_ids),
                logprobs=list(s.logprobs),
                drafted=s.drafted,
                accepted=s.accepted,
                draft_counts=[_draft_counts(counts) for counts in s.draft_counts],
            )
            for s in result.sequences
        ],
        duration_s=result.duration_ns * 1e-9,
        proposing_s=result.proposing_ns * 1e-9,
    )


def _draft_counts(counts: shard_pb2.DraftCounts) -> DraftCounts:
    if len(counts.drafted) != len(counts.accepted):
        raise ValueError(f"{len(counts.drafted)} numbers of drafts and {len(counts.accepted)} of accepted ones")
    return DraftCounts(_METHOD[counts.method], list(counts.drafted), list(counts.accepted))
