"""Processes that tests start, and how they are waited for."""

import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from launcher.options import without_variables

ROOT = Path(__file__).parents[1]
PYTHONPATH = f"{ROOT}:{ROOT / 'proto'}"


def child_environ(**variables: str) -> dict[str, str]:
    """Of a process that finds the sources wherever it runs, and has no flag from whoever runs the tests."""
    return without_variables(os.environ) | {"PYTHONPATH": PYTHONPATH} | variables


def wait_until(condition: Callable[[], bool], *, what: str, limit_s: float = 120.0) -> None:
    """The limit is against hanging, not an expectation: the machine may be loaded."""
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {limit_s:g} s for {what}"
        time.sleep(0.02)


def is_running(pid: int) -> bool:
    """A zombie has ended: nobody but its reaper can tell."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return status.rsplit(")", 1)[1].split()[0] not in "ZX"


def assert_promtool_accepts(exposition: str) -> None:
    promtool = shutil.which("promtool", path=f"{ROOT / '.tools'}{os.pathsep}{os.environ['PATH']}")
    if promtool is None:
        assert os.environ.get("CI") != "true", "promtool is missing: run `make tools`"
        pytest.skip("promtool is not installed; `make tools` installs it")
    lint = subprocess.run([promtool, "check", "metrics"], input=exposition, capture_output=True, text=True, check=False)
    assert (lint.returncode, lint.stdout, lint.stderr) == (0, "", "")
