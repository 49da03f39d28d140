"""Steps of a session run in the order of their ids, whichever stream brought them.

A step that fails and a step that never comes end the process (see device_thread.leave).
"""

import asyncio
import logging
import time
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from shard.device_thread import DeviceThread, leave
from shard.plan import StepPlan, StepResult

log = logging.getLogger(__name__)

_CHECK_INTERVAL_S = 0.5

Result = TypeVar("Result")
# Gives the device a step and calls what it got beside it when the host is free; what it returns waits for the result.
Launch = Callable[[StepPlan, Callable[[], None]], Callable[[], StepResult]]


class StepOrder:
    def __init__(self, device: DeviceThread, launch: Launch) -> None:
        self._device = device
        self._launch = launch
        self._next_step_id = 1
        # Plans that came before one with a lower id.
        self._early: dict[int, tuple[StepPlan, asyncio.Future[StepResult]]] = {}
        self._early_since = 0.0

    async def begin_session(self, warm_up: Callable[[], Result]) -> Result:
        """Steps count from 1 again; plans that wait for one that never came are dropped. What the warm-up brought."""
        for _, future in self._early.values():
            future.cancel()
        self._early.clear()
        self._next_step_id = 1
        return await self._device.submit(partial(_or_leave, warm_up))

    def submit(self, plan: StepPlan) -> asyncio.Future[StepResult]:
        done: asyncio.Future[StepResult] = asyncio.get_running_loop().create_future()
        self._early[plan.step_id] = (plan, done)
        self._early_since = time.monotonic()
        while (early := self._early.pop(self._next_step_id, None)) is not None:
            self._next_step_id += 1
            launch = partial(self._launch, early[0], self._device.hand_over)
            running = self._device.submit_in_parts(partial(_or_leave, launch), _or_leave)
            running.add_done_callback(partial(_pass_on, early[1]))
        return done

    async def watch(self, timeout_s: float) -> None:
        while True:
            await asyncio.sleep(_CHECK_INTERVAL_S)
            if self._early and time.monotonic() - self._early_since > timeout_s:
                leave(f"step {self._next_step_id} never came, {min(self._early)} did")


def _or_leave(job: Callable[[], Result]) -> Result:
    try:
        return job()
    except Exception:
        log.exception("a step failed")
        leave("a step failed")


def _pass_on(waiting: asyncio.Future[StepResult], done: asyncio.Future[StepResult]) -> None:
    if not waiting.cancelled():
        waiting.set_result(done.result())
