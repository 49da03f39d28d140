"""A shard group behind real gRPC sockets whose arithmetic is `SimulatedShards`, with a known latency per step.

Ranks answer as real ones do: rank 0 with tokens, all with a digest. What a test may want to go wrong is an attribute.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from itertools import islice
from pathlib import Path
from typing import Any

import grpc

from drafthouse.v1 import sampling_pb2, shard_pb2, shard_pb2_grpc
from router.plan import NewSequence, SequenceResult, SequenceStep, StepPlan
from router.sequence import SamplingParams
from tests.router.simulated_shards import SimulatedShards

NUM_BLOCKS, BLOCK_SIZE, SPECULATE = 64, 4, 3


def plan_from_proto(plan: shard_pb2.StepPlan) -> StepPlan:
    return StepPlan(
        plan.step_id,
        list(plan.released_slots),
        [
            NewSequence(
                n.slot,
                list(n.token_ids),
                SamplingParams(seed=n.sampling.seed),
                n.max_num_tokens,
                frozenset(n.stop_token_ids),
                n.logprobs,
            )
            for n in plan.new_sequences
        ],
        sequence_steps(plan.sequences),
    )


def sequence_steps(steps: shard_pb2.SequenceSteps) -> list[SequenceStep]:
    block_ids = iter(steps.new_block_ids)
    others = steps.chunk_starts, steps.chunk_lengths, steps.verify, steps.propose, steps.propose_depths
    return [
        SequenceStep(slot, list(islice(block_ids, number)), *numbers)
        for slot, number, *numbers in zip(steps.slots, steps.num_new_blocks, *others, strict=True)
    ]


def sequence_results(results: list[SequenceResult]) -> shard_pb2.SequenceResults:
    return shard_pb2.SequenceResults(
        slots=[s.slot for s in results],
        num_tokens=[len(s.token_ids) for s in results],
        drafted=[s.drafted for s in results],
        accepted=[s.accepted for s in results],
        token_ids=[token_id for s in results for token_id in s.token_ids],
        draft_counts=[number for s in results for number in s.draft_counts],
    )


class FakeGroup:
    """What the ranks of one incarnation share."""

    def __init__(self, *, incarnation: int = 1, num_ranks: int = 1, latency_s: float = 0.0) -> None:
        self.incarnation = incarnation
        self.num_ranks = num_ranks
        self.latency_s = latency_s
        self.disagree_at_step: int | None = None
        self.silent_from_step: int | None = None
        # What the first reply says beside the truth, once.
        self.odd: shard_pb2.SequenceResults | None = None
        # Come before its first reply, once.
        self.strays: list[shard_pb2.StepResult] = []
        # What its warm-up measured.
        self.costs: list[shard_pb2.StepCost] = []
        # Prompts that begin with it.
        self.dies_of: int | None = None
        self.aborts: list[str] = []
        self.warmups: list[int] = []
        # step id -> when its plan came, when its reply left
        self.arrived_s: dict[int, float] = {}
        self.replied_s: dict[int, float] = {}
        self.phases: list[str] = []
        # As they came to rank 0.
        self.plans: list[shard_pb2.StepPlan] = []


class FakeRank(shard_pb2_grpc.ShardServiceServicer):
    def __init__(self, group: FakeGroup, rank: int) -> None:
        self.group = group
        self.rank = rank
        self.session: int | None = None
        self.new_session(0)

    def new_session(self, router_incarnation: int) -> None:
        self.session = router_incarnation
        self.shards = SimulatedShards(num_blocks=NUM_BLOCKS, block_size=BLOCK_SIZE, most_depth=SPECULATE)
        self.next_step_id = 1
        self.turn = asyncio.Condition()

    async def GetInfo(self, request: shard_pb2.GetInfoRequest, context: Any) -> shard_pb2.GetInfoResponse:
        return shard_pb2.GetInfoResponse(
            shard_incarnation=self.group.incarnation,
            rank=self.rank,
            world_size=self.group.num_ranks,
            model_type="simulated",
            dtype="none",
            device="none",
            vocab_size=64,
            max_total_tokens=128,
            max_batch_size=8,
            max_batch_prefill_tokens=64,
            num_blocks=NUM_BLOCKS,
            block_size=BLOCK_SIZE,
            speculate=SPECULATE,
            tree_size=SPECULATE,
            max_batch_draft_tokens=8 * SPECULATE,
            speculation_methods=[sampling_pb2.SPECULATION_METHOD_NGRAM],
        )

    async def Warmup(self, request: shard_pb2.WarmupRequest, context: Any) -> shard_pb2.WarmupResponse:
        self.new_session(request.router_incarnation)
        self.group.warmups.append(request.router_incarnation)
        return shard_pb2.WarmupResponse(step_costs=self.group.costs if self.rank == 0 else [])

    async def Prefill(self, request: Any, context: Any) -> AsyncIterator[shard_pb2.PrefillResponse]:
        async for result in self.steps("prefill", request):
            yield shard_pb2.PrefillResponse(result=result)

    async def Decode(self, request: Any, context: Any) -> AsyncIterator[shard_pb2.DecodeResponse]:
        async for result in self.steps("decode", request):
            yield shard_pb2.DecodeResponse(result=result)

    async def Verify(self, request: Any, context: Any) -> AsyncIterator[shard_pb2.VerifyResponse]:
        async for result in self.steps("verify", request):
            yield shard_pb2.VerifyResponse(result=result)

    async def Abort(self, request: shard_pb2.AbortRequest, context: Any) -> shard_pb2.AbortResponse:
        self.group.aborts.append(request.reason)
        return shard_pb2.AbortResponse()

    async def steps(self, phase: str, requests: Any) -> AsyncIterator[shard_pb2.StepResult]:
        queue: asyncio.Queue[shard_pb2.StepPlan] = asyncio.Queue()

        async def read() -> None:
            async for request in requests:
                if self.rank == 0:
                    self.group.arrived_s[request.plan.step_id] = time.monotonic()
                    self.group.phases.append(phase)
                    self.group.plans.append(request.plan)
                queue.put_nowait(request.plan)

        reader = asyncio.create_task(read())
        try:
            while True:
                plan = await queue.get()
                strays, self.group.strays = self.group.strays, []
                for stray in strays:
                    yield stray
                yield await self.run(plan)
        finally:
            reader.cancel()

    async def run(self, message: shard_pb2.StepPlan) -> shard_pb2.StepResult:
        async with self.turn:
            await self.turn.wait_for(lambda: self.next_step_id == message.step_id)
            await asyncio.sleep(self.group.latency_s)
            if self.group.silent_from_step is not None and message.step_id >= self.group.silent_from_step:
                await asyncio.sleep(3600)
            if any(new.token_ids[0] == self.group.dies_of for new in message.new_sequences):
                raise RuntimeError("out of memory")
            self.shards.send(plan_from_proto(message))
            result = self.shards.reply()
            self.next_step_id += 1
            self.turn.notify_all()
        digest = message.step_id
        if self.rank and message.step_id == self.group.disagree_at_step:
            digest += 1
        if self.rank == 0:
            self.group.replied_s[message.step_id] = time.monotonic()
        sequences = sequence_results(result.sequences if self.rank == 0 else [])
        if self.group.odd is not None:
            sequences.MergeFrom(self.group.odd)
            self.group.odd = None
        return shard_pb2.StepResult(
            step_id=message.step_id,
            shard_incarnation=message.shard_incarnation,
            router_incarnation=message.router_incarnation,
            digest=digest,
            duration_ns=round(self.group.latency_s * 1e9),
            sequences=sequences,
        )


class FakeShards:
    """Servers of one incarnation on `folder`/s-0, `folder`/s-1, …"""

    def __init__(self, folder: Path, group: FakeGroup) -> None:
        self.group = group
        self.addresses = tuple(f"unix:{folder}/s-{rank}" for rank in range(group.num_ranks))
        self._servers: list[grpc.aio.Server] = []

    async def __aenter__(self) -> "FakeShards":
        for rank, address in enumerate(self.addresses):
            with contextlib.suppress(FileNotFoundError):
                Path(address.removeprefix("unix:")).unlink()
            server = grpc.aio.server()
            shard_pb2_grpc.add_ShardServiceServicer_to_server(FakeRank(self.group, rank), server)
            server.add_insecure_port(address)
            await server.start()
            self._servers.append(server)
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.gather(*(server.stop(None) for server in self._servers))
