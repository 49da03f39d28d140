"""A session with a shard group: plans out to every rank, results back when all ranks have answered.

A session is one incarnation of the group and one of the router. Whatever goes wrong in it, ends it: `ShardGroupLost`
is the only error. Knows nothing of what a plan means.
"""

import asyncio
import logging
import secrets
from collections.abc import Callable
from typing import Any

import grpc

from drafthouse.v1 import shard_pb2, shard_pb2_grpc
from router.group_info import GroupInfo, ShardGroupLost, agreed_info
from router.plan import Phase, StepPlan, StepResult
from router.step_costs import StepCosts
from router.wire import costs_from_proto, plan_to_bytes, result_from_proto

log = logging.getLogger(__name__)

_OPTIONS = [
    ("grpc.max_receive_message_length", 64 * 1024 * 1024),
    ("grpc.max_send_message_length", 256 * 1024 * 1024),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    # Sessions of one process must not share a connection: a new one starts clean.
    ("grpc.use_local_subchannel_pool", 1),
]
_INFO_TIMEOUT_S = 5.0

_METHOD = {
    Phase.PREFILL: ("Prefill", shard_pb2.PrefillResponse),
    Phase.DECODE: ("Decode", shard_pb2.DecodeResponse),
    Phase.VERIFY: ("Verify", shard_pb2.VerifyResponse),
}


_Call = grpc.aio.StreamStreamCall[Any, Any]


class ShardSession:
    """Made by `open`; results of `send` are passed to `on_result` in step order, a loss once to `on_lost`."""

    def __init__(
        self,
        channels: list[grpc.aio.Channel],
        info: GroupInfo,
        *,
        on_result: Callable[[StepResult], None],
        on_lost: Callable[[ShardGroupLost], None],
        step_timeout_s: float,
    ) -> None:
        self.info = info
        # What the warm-up measured.
        self.costs = StepCosts()
        self._channels = channels
        self._router_incarnation = secrets.randbits(64)
        self._on_result = on_result
        self._on_lost = on_lost
        self._step_timeout_s = step_timeout_s
        self._is_lost = False
        # Of steps that not all ranks have answered: rank 0's results, and everybody's digest.
        self._results: dict[int, StepResult] = {}
        self._digests: dict[int, dict[int, int]] = {}
        self._next_step_id = 1
        self._num_sent = 0
        self._timer: asyncio.TimerHandle | None = None
        self._writes: asyncio.Future[list[None]] | None = None
        self._calls: dict[Phase, list[_Call]] = {}
        self._readers: list[asyncio.Task[None]] = []

    @classmethod
    async def open(
        cls,
        addresses: list[str],
        *,
        on_result: Callable[[StepResult], None],
        on_lost: Callable[[ShardGroupLost], None],
        step_timeout_s: float,
    ) -> "ShardSession":
        """Asks every rank who it is, warms all of them up together and opens the streams."""
        channels = [grpc.aio.insecure_channel(address, options=_OPTIONS) for address in addresses]
        try:
            stubs = [shard_pb2_grpc.ShardServiceStub(channel) for channel in channels]
            infos = await asyncio.gather(
                *(stub.GetInfo(shard_pb2.GetInfoRequest(), timeout=_INFO_TIMEOUT_S) for stub in stubs)
            )
            session = cls(
                channels,
                agreed_info(list(infos)),
                on_result=on_result,
                on_lost=on_lost,
                step_timeout_s=step_timeout_s,
            )
            warmup = shard_pb2.WarmupRequest(
                shard_incarnation=session.info.shard_incarnation, router_incarnation=session._router_incarnation
            )
            # The first steps may compile or page in weights; a step timeout is for steps.
            replies = await asyncio.gather(*(stub.Warmup(warmup, timeout=10 * step_timeout_s) for stub in stubs))
            session.costs = StepCosts(costs_from_proto(replies[0].step_costs))
        except BaseException as error:
            await asyncio.gather(*(channel.close() for channel in channels))
            if isinstance(error, grpc.aio.AioRpcError):
                raise ShardGroupLost(f"{error.code().name}: {error.details()}") from error
            raise
        session._open_streams()
        return session

    def _open_streams(self) -> None:
        for phase, (method, response) in _METHOD.items():
            self._calls[phase] = []
            for rank, channel in enumerate(self._channels):
                call = channel.stream_stream(
                    f"/drafthouse.v1.ShardService/{method}",
                    request_serializer=bytes,
                    response_deserializer=response.FromString,
                )()
                self._calls[phase].append(call)
                self._readers.append(asyncio.create_task(self._read(rank, call)))

    async def send(self, plan: StepPlan) -> None:
        data = plan_to_bytes(
            plan,
            shard_incarnation=self.info.shard_incarnation,
            router_incarnation=self._router_incarnation,
        )
        self._num_sent = plan.step_id
        log.debug("step %d sent: %s, %d rows", plan.step_id, plan.phase.value, plan.num_rows)
        if self._timer is None:
            self._start_timer()
        self._writes = asyncio.gather(*(call.write(data) for call in self._calls[plan.phase]))
        try:
            await self._writes
        except asyncio.CancelledError:
            # By a loss, unless whoever sends is cancelled itself.
            task = asyncio.current_task()
            if not self._is_lost or task is None or task.cancelling():
                raise
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError) as error:
            self._lose(f"a rank no longer takes plans: {error!r}")

    async def _read(self, rank: int, call: _Call) -> None:
        try:
            async for response in call:
                self._take(rank, response.result)
        except grpc.aio.AioRpcError as error:
            self._lose(f"rank {rank}: {error.code().name}: {error.details()}")
        except Exception as error:
            # Of a rank of another version: nobody else looks after this task, and no step would come after this one.
            log.exception("a reply of rank %d cannot be read", rank)
            self._lose(f"a reply of rank {rank} cannot be read: {error!r}")
        else:
            self._lose(f"rank {rank} ended a stream")

    def _take(self, rank: int, result: shard_pb2.StepResult) -> None:
        incarnations = (result.shard_incarnation, result.router_incarnation)
        if self._is_lost or incarnations != (self.info.shard_incarnation, self._router_incarnation):
            return
        if rank == 0:
            self._results[result.step_id] = result_from_proto(result, most_depth=self.info.speculate)
        self._digests.setdefault(result.step_id, {})[rank] = result.digest
        # Streams are independent, so the reply to a later step may arrive first.
        while len(self._digests.get(self._next_step_id, ())) == len(self._channels):
            if len(set(self._digests.pop(self._next_step_id).values())) > 1:
                self._lose(f"ranks committed different tokens in step {self._next_step_id}")
                return
            brought = self._results.pop(self._next_step_id)
            log.debug("step %d replied: %.2f ms on rank 0", self._next_step_id, 1e3 * brought.duration_s)
            self._next_step_id += 1
            self._start_timer()
            self._on_result(brought)

    def _start_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._next_step_id <= self._num_sent:
            self._timer = asyncio.get_running_loop().call_later(
                self._step_timeout_s,
                self._lose,
                f"no reply to step {self._next_step_id} within {self._step_timeout_s:g} s",
            )

    def _lose(self, reason: str) -> None:
        if not self._is_lost:
            self._is_lost = True
            # A large plan waits for its reader, and a process that is frozen reads nothing.
            if self._writes is not None:
                self._writes.cancel()
            self._on_lost(ShardGroupLost(reason))

    async def close(self, *, abort: str | None = None) -> None:
        """Ends the session; with `abort` every rank that can still hear it is told to leave."""
        self._is_lost = True
        if self._timer is not None:
            self._timer.cancel()
        for reader in self._readers:
            reader.cancel()
        for calls in self._calls.values():
            for call in calls:
                call.cancel()
        if abort is not None:
            request = shard_pb2.AbortRequest(reason=abort)
            stubs = [shard_pb2_grpc.ShardServiceStub(channel) for channel in self._channels]
            await asyncio.gather(*(stub.Abort(request, timeout=1.0) for stub in stubs), return_exceptions=True)
        await asyncio.gather(*self._readers, return_exceptions=True)
        await asyncio.gather(*(channel.close() for channel in self._channels))
