"""The one thread that touches the device. gRPC lives on the event loop and must answer beside a running step.

Everything that computes runs here, from loading on: CUDA's current device belongs to a thread, and OpenMP gives each
thread that uses it a team of its own, whose waiting members slow the other team's down.
"""

import asyncio
import contextlib
import logging
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

log = logging.getLogger(__name__)

_CHECK_INTERVAL_S = 0.5

Began = TypeVar("Began")
Result = TypeVar("Result")


def leave(reason: str) -> NoReturn:
    """Ends the process at once, whatever the device thread is doing.

    A rank that is out of step can only hold its group up, and the agent restarts the group as soon as one is gone.
    """
    log.critical("leaving: %s", reason)
    logging.shutdown()
    os._exit(1)


class DeviceThread:
    """Made and used on the event loop. Jobs run one after the other, in the order they were submitted.

    What a job's work returned goes through its `finish` before the event loop gets it: when nothing waits behind the
    job, else when the next one says so (`hand_over`). A GPU has then been given the next step before the results of
    this one are waited for; on CPU the next step does not wait while a reply is made of this one.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._jobs: queue.SimpleQueue[_Job] = queue.SimpleQueue()
        # Done but for `finish`.
        self._begun: list[_Job] = []
        # When those that are not finished were begun, oldest first.
        self._started_s: deque[float] = deque()
        threading.Thread(target=self._run, name="device", daemon=True).start()

    def submit(self, work: Callable[[], Result]) -> asyncio.Future[Result]:
        """When everything before it is finished."""

        def alone() -> Result:
            self.hand_over()
            return work()

        return self.submit_in_parts(alone, lambda result: result)

    def submit_in_parts(self, work: Callable[[], Began], finish: Callable[[Began], Result]) -> asyncio.Future[Result]:
        """`finish` may come after the beginning of the next work."""
        future: asyncio.Future[Result] = self._loop.create_future()
        self._jobs.put(_Job(work, finish, future))
        return future

    async def watch(self, timeout_s: float) -> None:
        """From now on, a step that takes longer ends the process; so does one that waits in a collective as long."""
        while True:
            await asyncio.sleep(_CHECK_INTERVAL_S)
            with contextlib.suppress(IndexError):
                if time.monotonic() - self._started_s[0] > timeout_s:
                    leave(
                        f"a step takes longer than {timeout_s:g} s; if it is not stuck, give it longer "
                        "(--collective-timeout) or less at once (--max-batch-prefill-tokens)"
                    )

    def begin_step(self) -> None:
        """Called by a job of many steps where one begins: each is watched by itself."""
        self._started_s[-1] = time.monotonic()

    def hand_over(self) -> None:
        """The event loop gets the results of the jobs before this one."""
        if not self._begun:
            return
        begun, self._begun = self._begun, []
        for job in begun:
            job.attempt(job.finish, job.result)
            self._started_s.popleft()
        self._loop.call_soon_threadsafe(_resolve, begun)

    def _run(self) -> None:
        while True:
            job = self._jobs.get()
            self._started_s.append(time.monotonic())
            job.attempt(job.work)
            self._begun.append(job)
            if self._jobs.empty():
                self.hand_over()


@dataclass(slots=True, eq=False)
class _Job:
    work: Callable[[], Any]
    finish: Callable[[Any], Any]
    future: asyncio.Future[Any]
    result: Any = None
    error: Exception | None = None

    def attempt(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Unless something failed before."""
        if self.error is None:
            try:
                self.result = function(*arguments)
            except Exception as error:
                self.error = error


def _resolve(jobs: list[_Job]) -> None:
    for job in jobs:
        if job.future.cancelled():
            continue
        if job.error is not None:
            job.future.set_exception(job.error)
        else:
            job.future.set_result(job.result)
