"""What ties this process to its parent and to the launcher: death with the parent, and the last word."""

import ctypes
import os
import signal
from pathlib import Path

_PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Asks the Linux kernel to kill this process when its parent dies: a killed agent must not leave shards behind."""
    parent = os.getppid()
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    except (OSError, AttributeError):
        return  # not Linux; the agent's own clean-up has to do
    if os.getppid() != parent:
        os._exit(1)


def write_fatal(run_dir: Path, message: str) -> None:
    """Tells the launcher that restarting is of no use. The first message stays."""
    temporary = run_dir / f".fatal-{os.getpid()}"
    temporary.write_text(message)
    try:
        os.link(temporary, run_dir / "fatal")
    except FileExistsError:
        pass
    finally:
        temporary.unlink()
