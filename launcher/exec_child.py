"""The first code that runs in a child: ties its life to its parent, then becomes the command. Python there imports
nothing that lies in the folder it is started in, which may be that of a model somebody else made.

Run by path with the standard library only: `python -I -S exec_child.py PARENT COMMAND…`, with the expected parent's
process id. A wrapper and not `preexec_fn`, because that is not safe in a launcher with threads.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # linux/prctl.h; survives exec, and is sent when the parent dies however it dies


def main(argv: list[str]) -> None:
    parent, command = int(argv[0]), argv[1:]
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    # A parent that died before the call above sends nothing: the orphan has been given to another process by now.
    if os.getppid() != parent:
        sys.exit(1)
    os.environ["PYTHONSAFEPATH"] = "1"
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(sys.argv[1:])
