"""A shard without a model: `python -m bench.fake_shard ADDRESS [STEP_MS]`, whose steps take so long, else nothing.

For measuring the router alone. Counts each sequence's tokens as a real shard would; they are the prompt's, again and
again.
"""

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc

from drafthouse.v1 import sampling_pb2, shard_pb2, shard_pb2_grpc
from shard.plan import NewSequence, SequenceResult, SequenceStep, StepResult
from shard.wire import plan_from_proto, result_to_proto

MAX_BATCH_SIZE, MAX_TOTAL_TOKENS, SPECULATE = 128, 2048, 3
_BLOCK_SIZE = 16
# Of the drafts in a step so many are right; a text that copies has about as many.
_ACCEPTED = 1
_VOCAB_SIZE = 1 << 20


class _Slot:
    def __init__(self, new: NewSequence) -> None:
        self._prompt = new.token_ids
        self.num_tokens = len(new.token_ids)
        self.max_num_tokens = new.max_num_tokens
        self.num_drafts = 0

    def take(self, step: SequenceStep) -> SequenceResult | None:
        """What the step brings; None for an unfinished prompt and for a row that came after the end."""
        num_missing = self.max_num_tokens - self.num_tokens
        if num_missing == 0 or 0 < step.chunk_start + step.chunk_length < self.num_tokens:
            return None
        drafted = 0 if step.chunk_length else min(step.verify, self.num_drafts)
        accepted = min(_ACCEPTED, drafted, num_missing - 1)
        token_ids = [self._prompt[(self.num_tokens + i) % len(self._prompt)] for i in range(1 + accepted)]
        self.num_tokens += len(token_ids)
        self.num_drafts = max(0, min(step.propose, num_missing - len(token_ids) - 1))
        return SequenceResult(step.slot, token_ids, [], drafted, accepted, _counts(drafted, accepted))


def _counts(drafted: int, accepted: int) -> list[int]:
    """Those of a chain that was looked up; none if nothing was."""
    others = [0] * 2 * SPECULATE
    by_depth = ([int(depth < number) for depth in range(SPECULATE)] for number in (drafted, accepted))
    return [number for part in by_depth for number in (*part, *others)] if drafted else []


class FakeShard(shard_pb2_grpc.ShardServiceServicer):
    """One rank of one session; steps of the three streams run in the order of their ids."""

    def __init__(self, step_s: float) -> None:
        self._step_s = step_s
        self._is_free_at_s = 0.0
        self._slots: dict[int, _Slot] = {}
        self._next_step_id = 1
        self._turn = asyncio.Condition()

    async def GetInfo(self, request: shard_pb2.GetInfoRequest, context: Any) -> shard_pb2.GetInfoResponse:
        return shard_pb2.GetInfoResponse(
            shard_incarnation=1,
            rank=0,
            world_size=1,
            model_type="none",
            dtype="none",
            device="none",
            vocab_size=_VOCAB_SIZE,
            max_total_tokens=MAX_TOTAL_TOKENS,
            max_batch_size=MAX_BATCH_SIZE,
            max_batch_prefill_tokens=256,
            num_blocks=(MAX_BATCH_SIZE + 1) * MAX_TOTAL_TOKENS // _BLOCK_SIZE,
            block_size=_BLOCK_SIZE,
            speculate=SPECULATE,
            tree_size=SPECULATE,
            max_batch_draft_tokens=MAX_BATCH_SIZE * SPECULATE,
            speculation_methods=[sampling_pb2.SPECULATION_METHOD_NGRAM],
        )

    async def Warmup(self, request: shard_pb2.WarmupRequest, context: Any) -> shard_pb2.WarmupResponse:
        # A device to which rows cost next to nothing, so that whoever wants drafts is asked for them.
        return shard_pb2.WarmupResponse(
            step_costs=[
                shard_pb2.StepCost(
                    sequences=n,
                    rows=n,
                    context=n,
                    proposal=proposal,
                    duration_ns=10_000_000 + n + asked,
                    proposing_ns=asked,
                )
                for n in (1, 4096)
                for proposal, asked in ((shard_pb2.PROPOSAL_NONE, 0), (shard_pb2.PROPOSAL_LOOKUP, 1))
            ]
        )

    async def Prefill(
        self, request: AsyncIterator[shard_pb2.PrefillRequest], context: Any
    ) -> AsyncIterator[shard_pb2.PrefillResponse]:
        async for message in request:
            yield shard_pb2.PrefillResponse(result=await self._run(message.plan))

    async def Decode(
        self, request: AsyncIterator[shard_pb2.DecodeRequest], context: Any
    ) -> AsyncIterator[shard_pb2.DecodeResponse]:
        async for message in request:
            yield shard_pb2.DecodeResponse(result=await self._run(message.plan))

    async def Verify(
        self, request: AsyncIterator[shard_pb2.VerifyRequest], context: Any
    ) -> AsyncIterator[shard_pb2.VerifyResponse]:
        async for message in request:
            yield shard_pb2.VerifyResponse(result=await self._run(message.plan))

    async def Abort(self, request: shard_pb2.AbortRequest, context: Any) -> shard_pb2.AbortResponse:
        return shard_pb2.AbortResponse()

    async def _run(self, message: shard_pb2.StepPlan) -> shard_pb2.StepResult:
        plan = plan_from_proto(message)
        async with self._turn:
            await self._turn.wait_for(lambda: self._next_step_id == plan.step_id)
            for slot in plan.released_slots:
                del self._slots[slot]
            for new in plan.new_sequences:
                self._slots[new.slot] = _Slot(new)
            results = [self._slots[step.slot].take(step) for step in plan.sequences]
            # The next step was there already, or the device waited for it.
            self._is_free_at_s = max(self._is_free_at_s, time.monotonic()) + self._step_s
            if self._step_s:
                await asyncio.sleep(self._is_free_at_s - time.monotonic())
            self._next_step_id += 1
            self._turn.notify_all()
        brought = [result for result in results if result is not None]
        result = StepResult(plan.step_id, brought, digest=plan.step_id, duration_ns=int(self._step_s * 1e9))
        return result_to_proto(result, session=(message.shard_incarnation, message.router_incarnation))


async def main(address: str, step_ms: str = "0") -> None:
    server = grpc.aio.server()
    shard_pb2_grpc.add_ShardServiceServicer_to_server(FakeShard(float(step_ms) * 1e-3), server)
    server.add_insecure_port(address)
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
