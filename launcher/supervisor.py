"""Keeps the two children running: starts them, restarts them within a budget, stops them in order.

Both are restarted on their own. A router that died costs its open streams but not the shards' minutes of loading; an
agent that used up its own restarts costs a pause, because the router replays its sequences. Must not know how a
child's command line is made, nor what a shard or a router is beyond its name.
"""

import math
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from launcher.log_pump import LogPump
from launcher.logs import LogWriter
from launcher.process import Child, ChildSpec, describe_exit
from launcher.restart_budget import RestartBudget

MAX_STARTS = 5
WINDOW_S = 600.0
TICK_S = 0.1
# What children get to end where the launcher gives up: with one of them for good away, requests cannot be finished.
GIVEN_UP_S = 5.0
# `timeout` signals a process and then its group: that is one wish to end, not a second one, which hurries.
SAME_WISH_S = 0.3
# A child writes its message for the user here before it exits with an error that a restart cannot mend.
FATAL_FILE = "fatal"


@dataclass(slots=True)
class Service:
    """One child over its restarts. `follow` makes the two callbacks that read one incarnation's output."""

    spec: ChildSpec
    follow: Callable[[], tuple[Callable[[str], None], Callable[[], None] | None]]
    budget: RestartBudget = field(default_factory=lambda: RestartBudget(max_starts=MAX_STARTS, window_s=WINDOW_S))
    child: Child | None = None
    start_at_s: float = 0.0


class Supervisor:
    """`run` returns the launcher's exit code: 0 after a clean stop, else 1.

    `services` are started in their order and stopped in the reverse order.
    """

    def __init__(
        self,
        services: list[Service],
        *,
        run_dir: Path,
        pump: LogPump,
        log: LogWriter,
        is_ready: Callable[[], bool],
        on_ready: Callable[[], None],
    ) -> None:
        self._services = services
        self._fatal_file = run_dir / FATAL_FILE
        self._pump = pump
        self._log = log
        self._is_ready = is_ready
        self._on_ready = on_ready
        self._announced = False
        self._num_signals = 0
        self._last_signal_s = -math.inf

    def run(self) -> int:
        """From then on signals are this object's, after the end too: what is left to clean up is not interrupted."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            # A terminal that closes is a wish to end, but not under nohup.
            if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._on_signal)
        most_s = math.inf
        try:
            failure = self._watch()
            if failure is not None:
                self._log.error(failure)
                most_s = GIVEN_UP_S
            else:
                self._log.info("stopping: open requests may finish, a second signal hurries")
        finally:
            clean = self._stop_all(time.monotonic() + most_s)
        return 0 if failure is None and clean else 1

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if now - self._last_signal_s > SAME_WISH_S:
            self._num_signals += 1
            self._last_signal_s = now

    def _watch(self) -> str | None:
        """Until a signal (None) or until it cannot go on (the reason)."""
        while not self._num_signals:
            for service in self._services:
                failure = self._look_after(service)
                if failure is not None:
                    return failure
            if not self._announced and self._is_ready():
                self._announced = True
                self._on_ready()
            time.sleep(TICK_S)
        return None

    def _look_after(self, service: Service) -> str | None:
        """Starts what does not run, as far as its budget goes; the reason where it does not."""
        now = time.monotonic()
        exit_code = service.child.exit_code() if service.child is not None else None
        # Read after the exit code: a child that has exited has written its message by now.
        fatal = self._read_fatal()
        if fatal is not None:
            return fatal
        if exit_code is not None:
            service.child = None
            name, ending = service.spec.name, describe_exit(exit_code)
            if not service.budget.can_start(now):
                return (
                    f"{name} {ending}; it was started {service.budget.max_starts} times within "
                    f"{service.budget.window_s / 60:g} minutes, giving up (its output above says why it fails)"
                )
            service.start_at_s = now + service.budget.delay_s()
            self._log.warning(f"{name} {ending}; starting it again")
        if service.child is None and now >= service.start_at_s:
            service.budget.record_start(now)
            service.child = Child(service.spec, self._pump, *service.follow())
        return None

    def _read_fatal(self) -> str | None:
        try:
            return self._fatal_file.read_text(encoding="utf-8", errors="replace").strip()
        except FileNotFoundError:
            return None

    def _stop_all(self, until_s: float) -> bool:
        """True when every child ended by itself. After a failure one signal hurries, after a signal a second one."""
        needed = 2 if self._num_signals else 1

        def is_hurried() -> bool:
            return self._num_signals >= needed or time.monotonic() > until_s

        clean = True
        for service in reversed(self._services):
            if service.child is None:
                continue
            if not service.child.stop(is_hurried):
                self._log.warning(f"{service.spec.name} did not end in time and was killed")
                clean = False
        return clean
