"""What ties this process to its parent and to the launcher: its name, death with the parent, and the last word."""

import contextlib
import ctypes
import os
import signal
from pathlib import Path

# The variable that names the file by which the ranks of a group find each other.
MEETING = "DRAFTHOUSE_MEETING"
# linux/prctl.h
_PR_SET_PDEATHSIG, _PR_SET_NAME = 1, 15


def die_with_parent(parent: int) -> None:
    """Asks the Linux kernel to kill this process when its parent dies: a killed agent must not leave shards behind."""
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    except (OSError, AttributeError):
        return  # not Linux; the agent's own clean-up has to do
    if os.getppid() != parent:
        os._exit(1)


def name_process(name: str) -> None:
    """What `top` and `ps -o comm` call it, 15 letters at most."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_NAME, name.encode())


def write_fatal(run_dir: Path, message: str) -> None:
    """Tells the launcher that restarting is of no use. The first message stays."""
    temporary = run_dir / f".fatal-{os.getpid()}"
    # A path's bytes that are no text must not cost the message.
    temporary.write_text(message, encoding="utf-8", errors="backslashreplace")
    try:
        os.link(temporary, run_dir / "fatal")
    except FileExistsError:
        pass
    finally:
        temporary.unlink()
