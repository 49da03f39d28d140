"""What runs beside a launch: begun with it, ended with it, and never in its way."""

import os
import sys
import time
from pathlib import Path

import pytest

from launcher.launch import Programs
from launcher.machine import Machine
from launcher.process import helper


def test_a_helper_runs_beside_what_is_inside_and_ends_with_it(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    script = "import os, pathlib, sys, time; pathlib.Path(sys.argv[1]).write_text(str(os.getpid())); time.sleep(600)"
    with helper((sys.executable, "-c", script, str(pid_file)), os.environ):
        deadline = time.monotonic() + 20
        while not (pid_file.exists() and pid_file.read_text()):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        pid = int(pid_file.read_text())
        os.kill(pid, 0)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.parametrize("command", [None, (sys.executable, "-c", "raise SystemExit(3)")])
def test_a_helper_that_fails_or_is_not_there_is_no_error(command: tuple[str, ...] | None) -> None:
    with helper(command, os.environ):
        pass


@pytest.mark.parametrize(("num_gpus", "makes"), [(0, True), (1, False)])
def test_kernels_are_made_where_shards_use_them(num_gpus: int, makes: bool) -> None:
    programs = Programs.for_machine(Machine(num_gpus=num_gpus, num_cores=2))
    assert (programs.kernels is not None) == makes
