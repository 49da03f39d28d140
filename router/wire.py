"""Between the router's own types and the messages of ShardService. Beside it only shard_group and
group_info know them."""

from collections.abc import Iterable
from itertools import accumulate, chain
from typing import TypeVar

from drafthouse.v1 import sampling_pb2, shard_pb2
from router.draft_counts import METHODS, num_counts
from router.plan import NewSequence, SequenceResult, SequenceStep, StepPlan, StepResult
from router.proposal import Proposal
from router.step_costs import StepCost

_Value = TypeVar("_Value")

# By its number on the wire.
_METHOD = dict(enumerate(("none", *METHODS)))

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
        sequences=_sequence_steps(plan.sequences),
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


def _sequence_steps(steps: list[SequenceStep]) -> shard_pb2.SequenceSteps:
    slots, new_block_ids, chunk_starts, chunk_lengths, verify, propose, propose_depths = zip(*steps, strict=True)
    return shard_pb2.SequenceSteps(
        slots=slots,
        num_new_blocks=map(len, new_block_ids),
        chunk_starts=chunk_starts,
        chunk_lengths=chunk_lengths,
        verify=verify,
        propose=propose,
        propose_depths=propose_depths,
        new_block_ids=chain.from_iterable(new_block_ids),
    )


def result_from_proto(result: shard_pb2.StepResult, *, most_depth: int) -> StepResult:
    """Of shards that draft so far ahead. ValueError for what they do not say."""
    sequences = result.sequences
    num_tokens, drafted = list(sequences.num_tokens), list(sequences.drafted)
    if 0 in num_tokens:
        raise ValueError("a sequence without tokens")
    num_logprobs = num_tokens if sequences.logprobs else [0] * len(num_tokens)
    num_draft_counts = [num_counts(most_depth) if number else 0 for number in drafted]
    return StepResult(
        step_id=result.step_id,
        sequences=[
            SequenceResult(*fields)
            for fields in zip(
                sequences.slots,
                _parts("token ids", list(sequences.token_ids), num_tokens),
                _parts("logprobs", list(sequences.logprobs), num_logprobs),
                drafted,
                sequences.accepted,
                _parts("counts of drafts", list(sequences.draft_counts), num_draft_counts),
                strict=True,
            )
        ],
        duration_s=result.duration_ns * 1e-9,
        proposing_s=result.proposing_ns * 1e-9,
    )


def _parts(what: str, values: list[_Value], lengths: list[int]) -> list[list[_Value]]:
    """One after the other, of such lengths."""
    if len(values) != sum(lengths):
        raise ValueError(f"{len(values)} {what} where {sum(lengths)} were said to come")
    return [values[end - length : end] for end, length in zip(accumulate(lengths), lengths, strict=True)]
