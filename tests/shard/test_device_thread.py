"""The order of works and their finishes, with the real thread."""

import asyncio
import contextlib
import threading
from functools import partial

import pytest

from shard.device_thread import DeviceThread
from tests.processes import wait_until


class Recorder:
    """Jobs that say what happened; `gate` holds the first one until more wait behind it."""

    def __init__(self) -> None:
        self.device = DeviceThread()
        self.events: list[str] = []
        self.gate = threading.Event()

    def in_parts(self, name: str, *, hands_over: bool = True) -> asyncio.Future[str]:
        def work() -> str:
            self.gate.wait()
            self.events.append(f"begin {name}")
            if hands_over:
                self.device.hand_over()
            self.events.append(f"end {name}")
            return name

        return self.device.submit_in_parts(work, partial(self._say, "finish"))

    def alone(self, name: str) -> asyncio.Future[str]:
        return self.device.submit(partial(self._say, "alone", name))

    def _say(self, what: str, name: str) -> str:
        self.events.append(f"{what} {name}")
        return name


def test_a_result_waits_until_the_next_work_hands_it_over() -> None:
    async def run() -> list[str]:
        recorder = Recorder()
        jobs = [recorder.in_parts("a"), recorder.in_parts("b"), recorder.in_parts("c", hands_over=False)]
        recorder.gate.set()
        assert await asyncio.gather(*jobs) == ["a", "b", "c"]
        return recorder.events

    assert asyncio.run(run()) == [
        *("begin a", "end a"),
        *("begin b", "finish a", "end b"),
        *("begin c", "end c", "finish b", "finish c"),
    ]


def test_a_result_behind_which_nothing_waits_is_there_at_once() -> None:
    async def run() -> list[str]:
        recorder = Recorder()
        recorder.gate.set()
        for name in ("a", "b"):
            assert await recorder.in_parts(name) == name
        return recorder.events

    assert asyncio.run(run()) == ["begin a", "end a", "finish a", "begin b", "end b", "finish b"]


def test_what_is_done_alone_waits_for_the_results_before_it() -> None:
    async def run() -> list[str]:
        recorder = Recorder()
        jobs = [recorder.in_parts("a"), recorder.alone("b")]
        recorder.gate.set()
        await asyncio.gather(*jobs)
        return recorder.events

    assert asyncio.run(run()) == ["begin a", "end a", "finish a", "alone b"]


@pytest.mark.parametrize("fails_late", [False, True])
def test_an_error_is_that_of_its_own_job(fails_late: bool) -> None:
    async def run() -> None:
        recorder = Recorder()

        def fail(*_: object) -> None:
            raise ValueError("this one")

        failing = recorder.device.submit_in_parts(*((lambda: None, fail) if fails_late else (fail, lambda _: None)))
        other = recorder.in_parts("b")
        recorder.gate.set()
        with pytest.raises(ValueError, match="this one"):
            await failing
        assert await other == "b"

    asyncio.run(run())


class Clock:
    """In the place of `time`. Goes only when it is told to, and knows how often it was looked at."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.num_looks = 0

    def monotonic(self) -> float:
        self.num_looks += 1
        return self.now_s


def test_a_job_of_many_steps_is_watched_step_by_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """A warm-up takes longer than any step may."""
    monkeypatch.setattr("shard.device_thread._CHECK_INTERVAL_S", 0.01)
    clock = Clock()
    monkeypatch.setattr("shard.device_thread.time", clock)

    class Left(Exception):
        pass

    def leave(reason: str) -> None:
        raise Left(reason)

    monkeypatch.setattr("shard.device_thread.leave", leave)

    async def run(num_steps: int, step_s: float) -> None:
        device = DeviceThread()
        watch = asyncio.create_task(device.watch(0.5))

        def step() -> None:
            device.begin_step()
            clock.now_s += step_s
            # One of two begins after that.
            seen = clock.num_looks + 2
            wait_until(lambda: clock.num_looks >= seen or watch.done(), what="the watch")

        def many() -> None:
            for _ in range(num_steps):
                step()

        await device.submit(many)
        watch.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watch

    asyncio.run(run(5, 0.4))
    with pytest.raises(Left, match=r"longer than 0\.5 s"):
        asyncio.run(run(1, 0.6))
