"""The one thread that touches the device. gRPC lives on the event loop and must answer beside a running step.

Everything that computes runs here, from loading on: CUDA's current device belongs to a thread, and OpenMP gives each
thread that uses it a team of its own, whose waiting members slow the other team's down.
"""

import asyncio
import logging
import os
import queue
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NoReturn, TypeVar

log = logging.getLogger(__name__)

_CHECK_INTERVAL_S = 0.5

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

    What a job brought is handed to the event loop when nothing waits behind it, else by the job behind it
    (`hand_over`): both threads need the interpreter, and the device must not wait for replies.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._jobs: queue.SimpleQueue[tuple[Callable[[], Any], asyncio.Future[Any]]] = queue.SimpleQueue()
        self._busy_since: float | None = None
        self._finished: list[Callable[[], None]] = []
        threading.Thread(target=self._run, name="device", daemon=True).start()

    def submit(self, job: Callable[[], Result]) -> asyncio.Future[Result]:
        future: asyncio.Future[Result] = self._loop.create_future()
        self._jobs.put((job, future))
        return future

    async def watch(self, timeout_s: float) -> None:
        """From now on, a job that takes longer ends the process; so does one that waits in a collective as long."""
        while True:
            await asyncio.sleep(_CHECK_INTERVAL_S)
            if (since := self._busy_since) is not None and time.monotonic() - since > timeout_s:
                leave(f"a step takes longer than {timeout_s:g} s")

    def hand_over(self) -> None:
        """For a job that needs no interpreter for a while: the event loop gets what was finished before."""
        if self._finished:
            finished, self._finished = self._finished, []
            self._loop.call_soon_threadsafe(_call_all, finished)

    def _run(self) -> None:
        while True:
            job, future = self._jobs.get()
            self._busy_since = time.monotonic()
            try:
                result, error = job(), None
            except Exception as raised:
                result, error = None, raised
            self._busy_since = None
            self._finished.append(partial(_resolve, future, result, error))
            if self._jobs.empty():
                self.hand_over()


def _call_all(calls: list[Callable[[], None]]) -> None:
    for call in calls:
        call()


def _resolve(future: asyncio.Future[Any], result: Any, error: Exception | None) -> None:
    if future.cancelled():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(result)
