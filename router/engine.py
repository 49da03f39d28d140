"""Joins requests, scheduler and shards: the one loop of the router.

    while a plan can be made and fewer than two steps are outstanding: send it
    when a reply comes: update the scheduler, turn tokens to text, pass them on

A step is sent before the reply to the one before it is in: the scheduler makes that safe, router/pacing.py says how
long before it. When the shard group is lost the loop opens a session with the next one and every unfinished sequence
is prefilled again.
"""

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import AsyncGenerator
from importlib.metadata import PackageNotFoundError, version

from router.budget import BudgetController
from router.config import RouterConfig
from router.detokenizer import Detokenizer
from router.errors import DeadlineExceeded, Overloaded, RequestError, ShardsDied, Unavailable
from router.group_info import GroupInfo, ShardGroupLost
from router.metrics import Metrics
from router.observer import Observer
from router.pacing import Pacer
from router.plan import Phase, StepResult
from router.request import GenerationOutput, GenerationRequest, Limits, ModelInfo
from router.scheduler import Progress, Scheduler, SchedulerConfig
from router.sequence import FinishReason, Sequence
from router.shard_group import ShardSession
from router.step_costs import StepCosts
from router.stream import Stream
from router.tokenizer import Tokenizer
from router.turns import Turns

log = logging.getLogger(__name__)

# One step runs while the next is on its way; more would only waste rows of sequences that ended.
_MAX_OUTSTANDING_STEPS = 2
_RECONNECT_INTERVAL_S = 0.25
# What a client that was turned away is told to wait.
_RETRY_AFTER_S = 1.0


class Engine:
    def __init__(self, config: RouterConfig, *, tokenizer: Tokenizer, metrics: Metrics) -> None:
        self._config = config
        self._tokenizer = tokenizer
        self._observer = Observer(metrics, num_shards=config.num_shard)
        self._info: GroupInfo | None = None
        self._scheduler: Scheduler | None = None
        self._session: ShardSession | None = None
        self._streams: dict[Sequence, Stream] = {}
        self._turns = Turns()
        self._next_seq_id = 0
        self._phases: dict[int, Phase] = {}
        self._pacer = Pacer()
        # What the session brought since the loop last looked.
        self._results: deque[StepResult] = deque()
        self._lost: ShardGroupLost | None = None
        self._wake = asyncio.Event()
        self._is_draining = False
        self._observer.set_shards_up(False)

    # --- what the servers ask

    @property
    def is_ready(self) -> bool:
        return self._session is not None and self._lost is None and not self._is_draining

    @property
    def is_draining(self) -> bool:
        return self._is_draining

    def refuse_if_full(self, num_others: int, /) -> None:
        num_requests = len(self._streams) + num_others
        if num_requests >= self._config.max_concurrent_requests:
            raise Overloaded(f"{num_requests} requests are already being served", _RETRY_AFTER_S)

    def limits(self) -> Limits:
        return self._known_info().limits(self._config)

    def model_info(self) -> ModelInfo:
        return self._known_info().model_info(self._config, version=_version())

    def _known_info(self) -> GroupInfo:
        if self._info is None:
            raise Unavailable("the shards are still starting")
        return self._info

    async def generate(self, request: GenerationRequest, /) -> AsyncGenerator[GenerationOutput, None]:
        stream = self._submit(request)
        try:
            while True:
                output = await stream.next_output()
                yield output
                if output.finish_reason is not None:
                    return
        finally:
            self._end(stream, None)

    async def drain(self, timeout_s: float) -> None:
        """Takes no more requests and waits for those that run; what is left after the timeout is ended."""
        self._is_draining = True
        deadline = time.monotonic() + timeout_s
        while self._streams and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
        for stream in list(self._streams.values()):
            self._end(stream, Unavailable("the service shut down before the last token"))

    # --- streams

    def _submit(self, request: GenerationRequest) -> Stream:
        if self._is_draining:
            raise Unavailable("the service is shutting down")
        info = self._known_info()
        assert self._scheduler is not None
        self.refuse_if_full(0)
        num_prompt_tokens = len(request.prompt_token_ids)
        sequence = Sequence(
            seq_id=self._next_seq_id,
            token_ids=list(request.prompt_token_ids),
            num_prompt_tokens=num_prompt_tokens,
            max_num_tokens=min(num_prompt_tokens + request.max_new_tokens, info.max_total_tokens),
            sampling=request.sampling,
            stop_token_ids=request.stop_token_ids,
            num_speculative_tokens=request.num_speculative_tokens,
            logprobs=request.logprobs,
        )
        self._next_seq_id += 1
        log.debug("request %s: %d prompt tokens", request.request_id, num_prompt_tokens)
        now = time.monotonic()
        detokenizer = Detokenizer(self._tokenizer, request.prompt_token_ids, request.stop_strings)
        stream = Stream(request, sequence, detokenizer, arrived_s=now)
        if request.deadline_s is not None:
            error = DeadlineExceeded("the deadline passed before the last token")
            stream.deadline = asyncio.get_running_loop().call_later(
                max(0.0, request.deadline_s - now), self._end, stream, error
            )
        self._streams[sequence] = stream
        self._scheduler.add(sequence)
        self._pacer.note_arrival(num_prompt_tokens, now)
        self._wake.set()
        return stream

    def _end(self, stream: Stream, last: FinishReason | RequestError | None, *, kept: int | None = None) -> None:
        """Where a stream ends while the engine runs: by its last token, an error, or (None) because nobody listens."""
        if stream.is_ended:
            return
        stream.close(last)
        log.debug("request %s ended: %s", stream.request.request_id, last or "nobody listens")
        del self._streams[stream.sequence]
        assert self._scheduler is not None
        self._scheduler.finish(stream.sequence, num_tokens=kept)
        self._wake.set()

    # --- the loop

    async def run(self) -> None:
        """Serves until cancelled. Fails only of what nobody foresaw, and then nobody waits for it."""
        try:
            while True:
                self._session = await self._open_session()
                try:
                    await self._serve(self._session)
                except ShardGroupLost as lost:
                    log.error("shard group lost: %s; replaying %d sequences", lost, len(self._streams))
                    await self._close_session(abort=str(lost))
                    # Nothing of what was planned is there any more.
                    assert self._scheduler is not None
                    for sequence in self._scheduler.restart(self._scheduler.config, self._scheduler.budget):
                        stream = self._streams[sequence]
                        log.error("request %s ends: the shards die of it", stream.request.request_id)
                        self._end(stream, ShardsDied("the shards died several times while they computed this request"))
        except Exception:
            self._is_draining = True
            # Not one by one at `_end`: the scheduler may be what failed.
            for stream in self._streams.values():
                stream.close(Unavailable("the router failed; send the request again"))
            self._streams.clear()
            raise
        finally:
            if self._session is not None:
                await self._close_session(abort=None)

    async def _open_session(self) -> ShardSession:
        self._results.clear()
        self._phases.clear()
        self._lost = None
        last_reason = ""
        while True:
            if self._scheduler is not None:
                # A warm-up takes a while, and nobody runs meanwhile.
                self._observer.set_gauges(self._scheduler)
            try:
                session = await ShardSession.open(
                    list(self._config.shard_addresses),
                    on_result=self._on_result,
                    on_lost=self._on_lost,
                    step_timeout_s=self._config.step_timeout,
                )
                break
            except ShardGroupLost as error:
                # Said once, not four times a second.
                if str(error) != last_reason:
                    log.debug("waiting for the shards: %s", error)
                    last_reason = str(error)
                await asyncio.sleep(_RECONNECT_INTERVAL_S)
        self._adopt(session.info, session.costs)
        return session

    def _adopt(self, info: GroupInfo, costs: StepCosts) -> None:
        """Begins with nothing on the shards: what was unfinished is planned from its first token."""
        config = SchedulerConfig(
            num_blocks=info.num_blocks,
            block_size=info.block_size,
            max_batch_size=info.max_batch_size,
            max_batch_tokens=info.max_batch_prefill_tokens,
            max_draft_tokens=info.max_batch_draft_tokens,
            enable_prefix_caching=not self._config.disable_prefix_caching,
        )
        self._pacer = Pacer(info.max_batch_prefill_tokens)
        budget = BudgetController(info.budget, costs)
        if self._scheduler is None:
            self._scheduler = Scheduler(config, budget)
        else:
            self._scheduler.restart(config, budget)
        is_new_group = self._info is not None and self._info.shard_incarnation != info.shard_incarnation
        self._observer.note_session(info, costs, is_new_group=is_new_group)
        self._info = info
        log.info(
            "serving %s: %s, %s on %s, %d shards, %d blocks of %d tokens, %s, kernels %s",
            self._config.model_id,
            info.model_type,
            info.dtype,
            info.device,
            self._config.num_shard,
            info.num_blocks,
            info.block_size,
            info.speculation,
            info.kernels,
        )

    async def _close_session(self, *, abort: str | None) -> None:
        assert self._session is not None
        session, self._session = self._session, None
        self._observer.set_shards_up(False)
        await session.close(abort=abort)

    def _on_result(self, result: StepResult) -> None:
        self._results.append(result)
        self._wake.set()

    def _on_lost(self, lost: ShardGroupLost) -> None:
        self._lost = lost
        self._wake.set()

    async def _serve(self, session: ShardSession) -> None:
        assert self._scheduler is not None
        while True:
            while self._results:
                self._take(self._results.popleft())
            if self._lost is not None:
                raise self._lost
            self._wake.clear()
            if (wait_s := self._pacer.wait_s(time.monotonic())) > 0:
                # Not wait_for: in Python 3.11 that loses a cancellation that comes with what it waits for.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(wait_s):
                        await self._wake.wait()
                continue
            if self._scheduler.num_outstanding_steps < _MAX_OUTSTANDING_STEPS and (plan := self._scheduler.schedule()):
                self._phases[plan.step_id] = plan.phase
                self._pacer.note_sent(plan, time.monotonic())
                if plan.new_sequences:
                    self._observer.note_admissions(self._streams.values())
                await session.send(plan)
                continue
            self._observer.set_gauges(self._scheduler)
            await self._wake.wait()

    def _take(self, result: StepResult) -> None:
        assert self._scheduler is not None
        self._pacer.note_result(result.duration_s, time.monotonic())
        for progress in self._scheduler.update(result):
            self._pass_on(progress)
        self._observer.note_step(self._phases.pop(result.step_id), result)

    def _pass_on(self, progress: Progress) -> None:
        stream, result = self._streams[progress.sequence], progress.result
        kept, reason = stream.take(result, progress.finish_reason)
        self._observer.note_output(stream, result, num_tokens=kept)
        if reason is None:
            self._turns.ask(stream)
        else:
            cut = len(result.token_ids) - kept
            self._end(stream, reason, kept=progress.sequence.num_tokens - cut)


def _version() -> str:
    try:
        return version("drafthouse")
    except PackageNotFoundError:
        return "of a checkout that is not installed"
