import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from launcher.supervisor import SAME_WISH_S
from tests.processes import child_environ, is_running, wait_until

HARNESS = Path(__file__).with_name("supervise.py")

# Each stand-in appends "name event" to RUN_DIR/events and its process id to RUN_DIR/pids.
PREAMBLE = """
import os, pathlib, signal, sys, time
run_dir = pathlib.Path(os.environ["RUN_DIR"])
name = pathlib.Path(sys.argv[0]).stem
def note(event):
    with open(run_dir / "events", "a") as events:
        events.write(f"{name} {event}\\n")
with open(run_dir / "pids", "a") as pids:
    pids.write(f"{os.getpid()}\\n")
"""
POLITE = (
    PREAMBLE
    + """
def leave(number, frame):
    note("asked to stop")
    time.sleep(0.2)
    note("stopped")
    sys.exit(0)
signal.signal(signal.SIGTERM, leave)
note("up")
while True:
    time.sleep(0.05)
"""
)
STUBBORN = (
    PREAMBLE
    + """
signal.signal(signal.SIGTERM, lambda number, frame: note("asked to stop"))
note("up")
while True:
    time.sleep(0.05)
"""
)
FAILING = PREAMBLE + "note('up'); print('because of this'); sys.exit(3)\n"


@dataclass
class Launched:
    process: "subprocess.Popen[str]"
    run_dir: Path

    def events(self) -> list[str]:
        path = self.run_dir / "events"
        return path.read_text().splitlines() if path.exists() else []

    def pids(self) -> list[int]:
        return [int(line) for line in (self.run_dir / "pids").read_text().split()]

    def wait_for(self, *events: str) -> None:
        wait_until(lambda: set(events) <= set(self.events()), what=f"{events}")

    def finish(self) -> tuple[int, str]:
        output, _ = self.process.communicate(timeout=60)
        return self.process.returncode, output


@pytest.fixture
def supervise(tmp_path: Path, program: Callable[[str, str], list[str]]) -> Iterator[Callable[..., Launched]]:
    """supervise(agent=SOURCE, router=SOURCE, grace_s=…) starts a supervisor over those stand-ins."""
    started: list[subprocess.Popen[str]] = []
    run_dir = tmp_path / "run"
    run_dir.mkdir()

    def start(*, grace_s: float = 20.0, **sources: str) -> Launched:
        services = [f"{name}={program(name, source)[-1]}" for name, source in sources.items()]
        process = subprocess.Popen(
            [sys.executable, str(HARNESS), str(run_dir), str(grace_s), *services],
            env=child_environ(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        started.append(process)
        return Launched(process, run_dir)

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_the_router_first_then_the_agent_and_exits_0(
    supervise: Callable[..., Launched], number: signal.Signals
) -> None:
    launched = supervise(agent=POLITE, router=POLITE)
    launched.wait_for("agent up", "router up")
    launched.process.send_signal(number)
    code, _ = launched.finish()
    assert code == 0
    assert launched.events()[2:] == ["router asked to stop", "router stopped", "agent asked to stop", "agent stopped"]


def test_a_child_that_does_not_stop_in_time_is_killed_and_the_exit_code_says_so(
    supervise: Callable[..., Launched],
) -> None:
    launched = supervise(agent=POLITE, router=STUBBORN, grace_s=0.5)
    launched.wait_for("agent up", "router up")
    launched.process.terminate()
    code, output = launched.finish()
    assert code == 1
    assert "router did not end in time and was killed" in output
    assert launched.events()[-1] == "agent stopped"
    assert not any(is_running(pid) for pid in launched.pids())


def test_a_second_signal_hurries(supervise: Callable[..., Launched]) -> None:
    launched = supervise(agent=STUBBORN, router=STUBBORN, grace_s=600.0)
    launched.wait_for("agent up", "router up")
    launched.process.send_signal(signal.SIGINT)
    launched.wait_for("router asked to stop")
    time.sleep(SAME_WISH_S)
    launched.process.send_signal(signal.SIGINT)
    assert launched.finish()[0] == 1
    assert not any(is_running(pid) for pid in launched.pids())


def test_a_signal_after_the_end_does_not_interrupt_what_is_left_to_clean_up(tmp_path: Path) -> None:
    script = f"""
import os, pathlib, signal
from launcher.log_pump import LogPump
from launcher.logs import LogWriter
from launcher.supervisor import Supervisor

def wish():
    os.kill(os.getpid(), signal.SIGTERM)

code = Supervisor(
    [],
    run_dir=pathlib.Path({str(tmp_path)!r}),
    pump=LogPump(),
    log=LogWriter(level="error", json_output=False),
    is_ready=wish,
    on_ready=wish,
).run()
wish()
print("cleaned up")
raise SystemExit(code)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], env=child_environ(), capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (0, "cleaned up\n")


def test_two_signals_at_once_are_one_wish(supervise: Callable[..., Launched]) -> None:
    launched = supervise(agent=POLITE, router=POLITE)
    launched.wait_for("agent up", "router up")
    launched.process.send_signal(signal.SIGTERM)
    launched.process.send_signal(signal.SIGINT)
    assert launched.finish()[0] == 0
    assert launched.events()[2:] == ["router asked to stop", "router stopped", "agent asked to stop", "agent stopped"]


def test_a_router_that_dies_is_started_again_while_the_agent_keeps_running(supervise: Callable[..., Launched]) -> None:
    dies_once = POLITE.replace(
        'note("up")', 'marker = run_dir / "died"\nif not marker.exists(): marker.touch(); sys.exit(7)\nnote("up")'
    )
    launched = supervise(agent=POLITE, router=dies_once)
    launched.wait_for("agent up", "router up")
    launched.process.terminate()
    code, output = launched.finish()
    assert code == 0
    assert "router exited with code 7; starting it again" in output
    assert launched.events().count("agent up") == 1


def test_an_agent_killed_from_outside_is_started_again(supervise: Callable[..., Launched]) -> None:
    launched = supervise(agent=POLITE, router=POLITE)
    launched.wait_for("agent up", "router up")
    agent = next(pid for pid in launched.pids() if b"agent.py" in Path(f"/proc/{pid}/cmdline").read_bytes())
    os.kill(agent, signal.SIGKILL)
    wait_until(lambda: launched.events().count("agent up") == 2, what="a new agent")
    launched.process.terminate()
    code, output = launched.finish()
    assert code == 0
    assert "agent was ended by SIGKILL; starting it again" in output


def test_a_child_that_keeps_failing_uses_up_its_budget(supervise: Callable[..., Launched]) -> None:
    launched = supervise(agent=POLITE, router=FAILING)
    code, output = launched.finish()
    assert code == 1
    assert launched.events().count("router up") == 5
    assert "router exited with code 3; it was started 5 times within 10 minutes, giving up" in output
    assert output.count("because of this") == 5
    assert launched.events()[-1] == "agent stopped"


def test_where_one_child_is_given_up_the_other_is_not_waited_for_as_if_it_could_finish(
    supervise: Callable[..., Launched],
) -> None:
    launched = supervise(agent=FAILING, router=STUBBORN, grace_s=600.0)
    code, output = launched.finish()
    assert code == 1
    assert "giving up" in output
    assert "router did not end in time and was killed" in output


def test_a_fatal_message_stops_everything_and_is_printed_once(supervise: Callable[..., Launched]) -> None:
    fatal = (
        PREAMBLE
        + """
(run_dir / "fatal.tmp").write_text("port 3000 is taken: choose another with --port\\n")
(run_dir / "fatal.tmp").rename(run_dir / "fatal")
sys.exit(1)
"""
    )
    launched = supervise(agent=POLITE, router=fatal)
    code, output = launched.finish()
    assert code == 1
    assert output.count("port 3000 is taken: choose another with --port") == 1
    assert "starting it again" not in output
    assert not any(is_running(pid) for pid in launched.pids())


def test_readiness_is_announced_once(supervise: Callable[..., Launched]) -> None:
    launched = supervise(agent=POLITE, router=POLITE.replace('note("up")', '(run_dir / "ready").touch(); note("up")'))
    launched.wait_for("router up")
    assert launched.process.stdout is not None
    lines = iter(launched.process.stdout.readline, "")
    assert any(line.endswith("launcher: ready\n") for line in lines)
    launched.process.terminate()
    code, rest = launched.finish()
    assert code == 0
    assert "ready\n" not in rest


def test_nothing_is_orphaned_when_the_launcher_is_killed(supervise: Callable[..., Launched]) -> None:
    launched = supervise(agent=STUBBORN, router=STUBBORN)
    launched.wait_for("agent up", "router up")
    launched.process.kill()
    wait_until(lambda: not any(is_running(pid) for pid in launched.pids()), what="the children to die")
