"""Runs the tests that need a GPU, as far as the packages that they need are there."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

_ROOT = Path(__file__).parents[2]
_TIMEOUT_S, _PROCESSES = 300, 8
_MARK, _OPTIONAL = "mark.gpu", "hypothesis"


def run_marked_tests() -> tuple[bool, str]:
    """Whether none failed, and what to say of them."""
    if find_spec("pytest") is None:
        return True, "not run: pytest is not installed"
    texts = {path: path.read_text() for path in sorted((_ROOT / "tests").rglob("test_*.py"))}
    files = [path for path, text in texts.items() if _MARK in text]
    without = [path for path in files if _OPTIONAL in texts[path] and find_spec(_OPTIONAL) is None]
    files = [path for path in files if path not in without]
    # Most of the time goes to compiling.
    side_by_side = ["-n", str(_PROCESSES)] if find_spec("xdist") is not None else []
    results = [_run("gpu and not alone", files, side_by_side), _run("gpu and alone", files, [])]
    note = "".join(f"; {path.name} not run: {_OPTIONAL} is not installed" for path in without)
    return all(passed for passed, _ in results), "; alone: ".join(said for _, said in results) + note


def _run(marks: str, files: list[Path], flags: list[str]) -> tuple[bool, str]:
    # Packages of this machine may warn of what ours do not.
    command = [sys.executable, "-m", "pytest", "-m", marks, "-W", "default", *flags, *map(str, files)]
    try:
        done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        return False, f"stopped after {_TIMEOUT_S} s"
    lines = done.stdout.strip().splitlines() or done.stderr.strip().splitlines() or ["no output"]
    if done.returncode:
        print(done.stdout + done.stderr, file=sys.stderr)
    return not done.returncode, lines[-1].strip("= ")
