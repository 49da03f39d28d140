import subprocess
import sys

from launcher.process import tied_to_parent

SAY = [sys.executable, "-c", "import sys; print('out'); print('err', file=sys.stderr)"]


def test_the_command_is_run_in_place_with_its_output_and_environment() -> None:
    command = tied_to_parent([sys.executable, "-c", "import os; print(os.getpid(), os.environ['A'])"])
    with subprocess.Popen(command, env={"A": "b"}, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.read() == f"{process.pid} b\n"


def test_an_orphan_does_not_start() -> None:
    # Started by another process than the one that is to be its parent.
    command = ["sh", "-c", '"$@"; exit $?', "sh", *tied_to_parent(SAY)]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (finished.returncode, finished.stdout) == (1, "")
