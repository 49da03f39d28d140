"""The first code that runs in a child: ties its life to its parent, points its output, then becomes the command.

Run by path with the standard library only: `python -I -S exec_child.py PARENT OUTPUT COMMAND…`. PARENT is the expected
parent's process id, or 0 for "whoever it is". OUTPUT is "-" to keep stdout and stderr, else the prefix of a named pipe,
the local rank is appended. A wrapper and not `preexec_fn`, because that is not safe in a launcher with threads.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # linux/prctl.h; survives exec, and is sent when the parent dies however it dies


def main(argv: list[str]) -> None:
    expected_parent, output, command = int(argv[0]), argv[1], argv[2:]
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    # A parent that died before the call above sends nothing: the orphan has been given to another process by now.
    parent = os.getppid()
    if parent == 1 if expected_parent == 0 else parent != expected_parent:
        sys.exit(1)
    if output != "-":
        pipe = os.open(f"{output}-{os.environ['LOCAL_RANK']}", os.O_WRONLY)
        os.dup2(pipe, 1)
        os.dup2(pipe, 2)
        os.close(pipe)
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(sys.argv[1:])
