"""A shard process over its socket: order of steps, sessions, and leaving when it can only hold others up."""

import asyncio
import signal
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import grpc
import pytest

from drafthouse.v1 import sampling_pb2, shard_pb2, shard_pb2_grpc
from tests.checkpoints import make_checkpoint
from tests.engines import run
from tests.shard_processes import ShardProcesses

PROMPT = [5, 6, 7, 5, 6, 7, 5, 6]
# Against hanging, not an expectation: the machine may be loaded, and each rank imports torch.
LIMIT_S = 120
# What a rank that waits for others waits longer than a test does.
FOR_EVER_S = 1000


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("model"))


class Client:
    """One rank's side of the wire, without the router."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.stub = shard_pb2_grpc.ShardServiceStub(channel)
        self.shard_incarnation = 0
        self.router_incarnation = 0

    async def begin(self, router_incarnation: int = 7) -> None:
        info = await self.stub.GetInfo(shard_pb2.GetInfoRequest(), wait_for_ready=True, timeout=LIMIT_S)
        self.shard_incarnation, self.router_incarnation = info.shard_incarnation, router_incarnation
        await self.stub.Warmup(
            shard_pb2.WarmupRequest(
                shard_incarnation=self.shard_incarnation, router_incarnation=self.router_incarnation
            ),
            timeout=LIMIT_S,
        )

    def plan(
        self, step_id: int, sequences: shard_pb2.SequenceSteps, new: shard_pb2.NewSequence | None = None
    ) -> shard_pb2.StepPlan:
        return shard_pb2.StepPlan(
            step_id=step_id,
            shard_incarnation=self.shard_incarnation,
            router_incarnation=self.router_incarnation,
            new_sequences=[new] if new else [],
            sequences=sequences,
        )

    def prefill(self) -> shard_pb2.PrefillRequest:
        new = shard_pb2.NewSequence(
            slot=0, token_ids=PROMPT, sampling=sampling_pb2.SamplingParams(seed=1), max_num_tokens=40
        )
        step = one_sequence(chunk_length=len(PROMPT), new_block_ids=[1, 2, 3])
        return shard_pb2.PrefillRequest(plan=self.plan(1, step, new=new))

    def decode(self, step_id: int) -> shard_pb2.DecodeRequest:
        return shard_pb2.DecodeRequest(plan=self.plan(step_id, one_sequence()))


def one_sequence(*, chunk_length: int = 0, new_block_ids: Sequence[int] = ()) -> shard_pb2.SequenceSteps:
    return shard_pb2.SequenceSteps(
        slots=[0],
        num_new_blocks=[len(new_block_ids)],
        chunk_starts=[0],
        chunk_lengths=[chunk_length],
        verify=[0],
        propose=[0],
        propose_depths=[0],
        new_block_ids=new_block_ids,
    )


def with_client(folder: Path, rank: int, scenario: Callable[[Client], Awaitable[None]]) -> None:
    async def connected() -> None:
        async with grpc.aio.insecure_channel(f"unix:{folder}/s-{rank}") as channel:
            await scenario(Client(channel))

    run(connected, timeout_s=LIMIT_S)


def exit_code(shards: ShardProcesses, rank: int = 0) -> int:
    return shards.processes[rank].wait(LIMIT_S)


def test_steps_run_in_the_order_of_their_ids_whichever_stream_brings_them_first(
    checkpoint: Path, tmp_path: Path
) -> None:
    tokens: list[list[int]] = []

    async def scenario(client: Client) -> None:
        for swapped in (False, True):
            await client.begin(router_incarnation=8 + swapped)
            prefill, decode = client.stub.Prefill(), client.stub.Decode()
            if swapped:
                await decode.write(client.decode(2))
                await asyncio.sleep(0.2)
            await prefill.write(client.prefill())
            first = await prefill.read()
            if not swapped:
                await decode.write(client.decode(2))
            second = await decode.read()
            tokens.append([*first.result.sequences.token_ids, *second.result.sequences.token_ids])
            await prefill.done_writing()
            await decode.done_writing()

    with ShardProcesses(tmp_path, checkpoint):
        with_client(tmp_path, 0, scenario)
    assert len(tokens[0]) == 2
    assert tokens[0] == tokens[1]


def test_a_plan_of_another_session_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    async def scenario(client: Client) -> None:
        await client.begin(router_incarnation=1)
        stale = client.prefill()
        await client.begin(router_incarnation=2)
        stream = client.stub.Prefill()
        await stream.write(stale)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stream.read()
        assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        with pytest.raises(grpc.aio.AioRpcError, match="another shard group"):
            await client.stub.Warmup(shard_pb2.WarmupRequest(shard_incarnation=1, router_incarnation=3))

    with ShardProcesses(tmp_path, checkpoint):
        with_client(tmp_path, 0, scenario)


def test_a_rank_that_misses_a_step_leaves(checkpoint: Path, tmp_path: Path) -> None:
    async def scenario(client: Client) -> None:
        await client.begin()
        stream = client.stub.Decode()
        await stream.write(client.decode(2))
        with pytest.raises(grpc.aio.AioRpcError):
            await stream.read()

    with ShardProcesses(tmp_path, checkpoint, collective_timeout=3) as shards:
        with_client(tmp_path, 0, scenario)
        assert exit_code(shards) == 1
        assert "step 1 never came, 2 did" in shards.log()


def test_a_rank_whose_peer_is_stuck_leaves(checkpoint: Path, tmp_path: Path) -> None:
    async def scenario(client: Client) -> None:
        info = await client.stub.GetInfo(shard_pb2.GetInfoRequest(), wait_for_ready=True, timeout=LIMIT_S)
        # The peer never warms up, so this rank waits in the first collective.
        warmup = shard_pb2.WarmupRequest(shard_incarnation=info.shard_incarnation, router_incarnation=1)
        with pytest.raises(grpc.aio.AioRpcError):
            await client.stub.Warmup(warmup, timeout=LIMIT_S)

    with ShardProcesses(tmp_path, checkpoint, num_ranks=2, collective_timeout=3) as shards:
        with_client(tmp_path, 0, scenario)
        assert exit_code(shards) == 1


def test_sigterm_never_waits_for_the_device_thread(checkpoint: Path, tmp_path: Path) -> None:
    with ShardProcesses(tmp_path, checkpoint, num_ranks=2, collective_timeout=FOR_EVER_S) as shards:

        async def scenario(client: Client) -> None:
            info = await client.stub.GetInfo(shard_pb2.GetInfoRequest(), wait_for_ready=True, timeout=LIMIT_S)
            warmup = shard_pb2.WarmupRequest(shard_incarnation=info.shard_incarnation, router_incarnation=1)
            stuck = asyncio.ensure_future(client.stub.Warmup(warmup, timeout=LIMIT_S))
            await asyncio.sleep(1)
            shards.processes[0].send_signal(signal.SIGTERM)
            with pytest.raises(grpc.aio.AioRpcError):
                await stuck

        with_client(tmp_path, 0, scenario)
        assert exit_code(shards) == -signal.SIGTERM


def test_abort_makes_a_rank_leave(checkpoint: Path, tmp_path: Path) -> None:
    async def scenario(client: Client) -> None:
        await client.begin()
        await client.stub.Abort(shard_pb2.AbortRequest(reason="a test"))

    with ShardProcesses(tmp_path, checkpoint) as shards:
        with_client(tmp_path, 0, scenario)
        assert exit_code(shards) == 1
        assert "told to: a test" in shards.log()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"max_batch_total_tokens": 64}, "too few KV blocks: --max-batch-total-tokens 64"),
        ({"max_total_tokens": 100_000}, "--max-total-tokens 100000 is more than the 2048 positions of the model"),
        ({"max_batch_prefill_tokens": 20}, "--max-batch-prefill-tokens 20 is too small"),
    ],
)
def test_settings_that_cannot_work_are_said_once_and_are_fatal(
    checkpoint: Path, tmp_path: Path, flags: dict[str, int], message: str
) -> None:
    with ShardProcesses(tmp_path, checkpoint, **flags) as shards:
        assert exit_code(shards) == 1
    assert (tmp_path / "fatal").read_text().startswith(message)
    assert "Traceback" not in shards.log()


def test_a_broken_checkpoint_is_fatal_and_names_the_tensor(checkpoint: Path, tmp_path: Path) -> None:
    other = make_checkpoint(tmp_path / "other", hidden=72)
    config = other / "config.json"
    config.write_text(config.read_text().replace('"intermediate_size": 216', '"intermediate_size": 200'))
    with ShardProcesses(tmp_path, other, num_ranks=2, collective_timeout=FOR_EVER_S) as shards:
        assert exit_code(shards, 0) == exit_code(shards, 1) == 1
    assert "mlp.gate_proj.weight has shape [216, 72]" in (tmp_path / "fatal").read_text()


def test_what_nobody_foresaw_is_logged_whole_and_worth_a_restart(checkpoint: Path, tmp_path: Path) -> None:
    with ShardProcesses(tmp_path, checkpoint, num_ranks=2, collective_timeout=1) as shards:
        shards.kill(1)
        assert exit_code(shards) == 1
    log = shards.log()
    assert "shard 0: not foreseen\nTraceback" in log
    assert "leaving: RuntimeError('Wait timeout')" in log
    assert not (tmp_path / "fatal").exists()


def test_a_router_may_ping_a_silent_stream_for_as_long_as_it_likes(checkpoint: Path, tmp_path: Path) -> None:
    """gRPC ends connections that ping too often without data, unless it is told not to: an idle group would restart."""

    async def scenario() -> None:
        # As often as gRPC lets a client; it would hold back pings without data, which comes to the same after minutes.
        pinging = [("grpc.keepalive_time_ms", 1000), ("grpc.http2.max_pings_without_data", 0)]
        async with grpc.aio.insecure_channel(f"unix:{tmp_path}/s-0", options=pinging) as channel:
            client = Client(channel)
            await client.begin()
            stream = client.stub.Prefill()
            await asyncio.sleep(5)
            await stream.write(client.prefill())
            assert (await stream.read()).result.step_id == 1
            stream.cancel()

    with ShardProcesses(tmp_path, checkpoint, max_batch_size=2):
        run(scenario, timeout_s=LIMIT_S)
