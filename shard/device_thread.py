"""The one thread that touches the device, and the order of steps.

gRPC lives on the event loop and must answer beside a running step, so all device work goes through here: jobs run one
after the other; steps run in the order of their ids, whichever stream brought them. A job that fails or takes longer
than the collective timeout, and a step that never comes, end the process: a rank that is out of step can only hold its
group up, and the agent restarts the group as soon as one rank is gone.
"""

import asyncio
import logging
import os
import queue
import threading
import time
from collections.abc import Callable
from typing import Any

from shard.plan import StepPlan, StepResult

log = logging.getLogger(__name__)

_CHECK_INTERVAL_S = 0.5


def leave(reason: str) -> None:
    """Ends the process at once, whatever the device thread is doing."""
    log.critical("leaving: %s", reason)
    logging.shutdown()
    os._exit(1)


class DeviceThread:
    """Made and used on the event loop; `execute` runs on the thread."""

    def __init__(self, execute: Callable[[StepPlan], StepResult], *, timeout_s: float) -> None:
        self._execute = execute
        self._timeout_s = timeout_s
        self._loop = asyncio.get_running_loop()
        self._jobs: queue.SimpleQueue[tuple[Callable[[], Any], asyncio.Future[Any]]] = queue.SimpleQueue()
        self._busy_since: float | None = None
        self._early: dict[int, tuple[StepPlan, asyncio.Future[StepResult]]] = {}
        self._early_since = 0.0
        self._next_step_id = 1
        threading.Thread(target=self._run, name="device", daemon=True).start()
        self._watch = self._loop.create_task(self._watchdog())

    def submit(self, job: Callable[[], Any]) -> asyncio.Future[Any]:
        future = self._loop.create_future()
        self._jobs.put((job, future))
        return future

    def submit_step(self, plan: StepPlan) -> asyncio.Future[StepResult]:
        future: asyncio.Future[StepResult] = self._loop.create_future()
        self._early[plan.step_id] = (plan, future)
        self._early_since = time.monotonic()
        while (early := self._early.pop(self._next_step_id, None)) is not None:
            self._next_step_id += 1
            plan, future_of_plan = early
            self._jobs.put((lambda plan=plan: self._execute(plan), future_of_plan))  # type: ignore[misc]
        return future

    def begin_session(self) -> None:
        """Steps count from 1 again; those that wait for one that never came are dropped."""
        for _, future in self._early.values():
            future.cancel()
        self._early.clear()
        self._next_step_id = 1

    def _run(self) -> None:
        while True:
            job, future = self._jobs.get()
            self._busy_since = time.monotonic()
            try:
                result = job()
            except Exception:
                log.exception("a step failed")
                leave("a step failed")
            self._busy_since = None
            self._loop.call_soon_threadsafe(_resolve, future, result)

    async def _watchdog(self) -> None:
        while True:
            await asyncio.sleep(_CHECK_INTERVAL_S)
            now = time.monotonic()
            if (since := self._busy_since) is not None and now - since > self._timeout_s:
                leave(f"a step takes longer than {self._timeout_s:g} s")
            if self._early and now - self._early_since > self._timeout_s:
                leave(f"step {self._next_step_id} never came, {min(self._early)} did")


def _resolve(future: asyncio.Future[Any], result: Any) -> None:
    if not future.cancelled():
        future.set_result(result)
