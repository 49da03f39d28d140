"""ShardService: streams of plans in, results out; sessions and incarnations.

gRPC runs on the event loop, device work on the device thread. A session begins with Warmup and is named by two
incarnations; plans of another session are refused, results of another are dropped.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import TypeVar

import grpc
from grpc.aio import ServicerContext

from drafthouse.v1 import shard_pb2, shard_pb2_grpc
from shard.device_thread import leave
from shard.plan import StepCost, StepResult
from shard.step_order import StepOrder
from shard.wire import costs_to_proto, plan_from_proto, result_to_proto

# A plan carries whole prompts; a result is small.
_OPTIONS = [
    ("grpc.max_receive_message_length", 256 * 1024 * 1024),
    ("grpc.keepalive_permit_without_calls", 1),
    # The router asks whether a rank lives however long nothing is said: pings are never too many.
    ("grpc.http2.max_ping_strikes", 0),
]

Request = TypeVar("Request", shard_pb2.PrefillRequest, shard_pb2.DecodeRequest, shard_pb2.VerifyRequest)


class ShardServicer(shard_pb2_grpc.ShardServiceServicer):
    def __init__(
        self, *, info: shard_pb2.GetInfoResponse, steps: StepOrder, warm_up: Callable[[], list[StepCost]]
    ) -> None:
        self._info = info
        self._steps = steps
        self._warm_up = warm_up
        self._session = (info.shard_incarnation, 0)

    async def GetInfo(self, request: shard_pb2.GetInfoRequest, context: ServicerContext) -> shard_pb2.GetInfoResponse:
        return self._info

    async def Warmup(self, request: shard_pb2.WarmupRequest, context: ServicerContext) -> shard_pb2.WarmupResponse:
        if request.shard_incarnation != self._info.shard_incarnation:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "another shard group was meant")
        self._session = (request.shard_incarnation, request.router_incarnation)
        costs = await self._steps.begin_session(self._warm_up)
        return shard_pb2.WarmupResponse(step_costs=costs_to_proto(costs))

    async def Prefill(
        self, request: AsyncIterator[shard_pb2.PrefillRequest], context: ServicerContext
    ) -> AsyncIterator[shard_pb2.PrefillResponse]:
        async for result in self._run(request, context):
            yield shard_pb2.PrefillResponse(result=result)

    async def Decode(
        self, request: AsyncIterator[shard_pb2.DecodeRequest], context: ServicerContext
    ) -> AsyncIterator[shard_pb2.DecodeResponse]:
        async for result in self._run(request, context):
            yield shard_pb2.DecodeResponse(result=result)

    async def Verify(
        self, request: AsyncIterator[shard_pb2.VerifyRequest], context: ServicerContext
    ) -> AsyncIterator[shard_pb2.VerifyResponse]:
        async for result in self._run(request, context):
            yield shard_pb2.VerifyResponse(result=result)

    async def Abort(self, request: shard_pb2.AbortRequest, context: ServicerContext) -> shard_pb2.AbortResponse:
        asyncio.get_running_loop().call_later(0.05, leave, f"told to: {request.reason}")
        return shard_pb2.AbortResponse()

    async def _run(
        self, requests: AsyncIterator[Request], context: ServicerContext
    ) -> AsyncIterator[shard_pb2.StepResult]:
        """Takes plans as they come, so that one can run while the next is on its way; results keep their order."""
        results: asyncio.Queue[asyncio.Future[StepResult] | None] = asyncio.Queue()
        session = self._session

        async def read() -> bool:
            """Until the stream ends, or (False) a plan that is not of this session."""
            try:
                async for request in requests:
                    plan = request.plan
                    if (plan.shard_incarnation, plan.router_incarnation) != session or session != self._session:
                        return False
                    results.put_nowait(self._steps.submit(plan_from_proto(plan)))
                return True
            finally:
                results.put_nowait(None)

        reader = asyncio.create_task(read())
        try:
            while (future := await results.get()) is not None:
                yield result_to_proto(await future, session=session)
            is_complete = await reader
        finally:
            reader.cancel()
        if not is_complete:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "the plan is of another session")


async def start_server(servicer: ShardServicer, address: str) -> grpc.aio.Server:
    server = grpc.aio.server(options=_OPTIONS)
    shard_pb2_grpc.add_ShardServiceServicer_to_server(servicer, server)
    server.add_insecure_port(address)
    await server.start()
    return server
