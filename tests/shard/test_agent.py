"""The agent asks nothing of CUDA, where whoever is forked after that cannot use it (seen with torch 2.11 on a GPU), and
ends its group whatever state a shard is in."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes import child_environ

_AGENT = """
import sys
import torch

def fail(*_):
    raise AssertionError("the agent asked CUDA")

torch.cuda.is_available = torch.cuda.device_count = torch.cuda.init = torch.cuda.get_device_properties = fail

from shard import agent

agent.run(sys.argv[1:], lambda flags: print("a shard with", *flags))
"""


def test_the_agent_asks_nothing_of_cuda(tmp_path: Path) -> None:
    pipe = tmp_path / "output"
    os.mkfifo(f"{pipe}-0")
    flags = [
        "--num-shard=1",
        "--max-restarts=0",
        f"--meeting-place={tmp_path}/meeting",
        f"--shard-output={pipe}",
        "--flag",
    ]
    with subprocess.Popen(
        [sys.executable, "-c", _AGENT, *flags],
        env=child_environ(),
        stderr=subprocess.PIPE,
        text=True,
    ) as agent:
        # Without waiting for a shard, which does not come if the agent fails.
        output = os.open(f"{pipe}-0", os.O_RDONLY | os.O_NONBLOCK)
        assert agent.stderr is not None
        errors = agent.stderr.read()
    said = os.read(output, 1000).decode()
    os.close(output)
    assert agent.returncode == 0, errors
    assert said == "a shard with --flag\n"


_ENDED = """
import os, signal, sys, time
from pathlib import Path

from shard import agent

def shard(flags):
    started = Path(flags[1])
    with started.open("a") as file:
        file.write("started\\n")
    if started.read_text().count("started") == 2:
        os._exit(1)
    os.kill(os.getpid(), int(flags[0]))
    time.sleep(60)

agent.run(sys.argv[1:], shard)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_shard_that_a_signal_ends_is_started_again(number: signal.Signals, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "output-0")
    output = os.open(tmp_path / "output-0", os.O_RDWR | os.O_NONBLOCK)
    flags = [
        "--num-shard=1",
        "--max-restarts=1",
        f"--meeting-place={tmp_path}/meeting",
        f"--shard-output={tmp_path}/output",
    ]
    agent = subprocess.run(
        [sys.executable, "-c", _ENDED, *flags, str(int(number)), str(tmp_path / "started")],
        env=child_environ(),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    os.close(output)
    assert (tmp_path / "started").read_text().count("started") == 2, agent.stderr
    assert agent.returncode != 0


_STOPPED = """
import os, signal, sys, time
from pathlib import Path

from shard import agent

def shard(flags):
    stopped = Path(flags[0])
    if os.environ["RANK"] == "1":
        stopped.write_text(str(os.getpid()))
        os.kill(os.getpid(), signal.SIGSTOP)
    while not stopped.exists() or " T " not in Path(f"/proc/{stopped.read_text()}/stat").read_text():
        time.sleep(0.01)
    os._exit(1)

agent.run(sys.argv[1:], shard)
"""


def test_a_shard_that_hears_nothing_does_not_outlive_another(tmp_path: Path) -> None:
    outputs = []
    for rank in range(2):
        os.mkfifo(tmp_path / f"output-{rank}")
        outputs.append(os.open(tmp_path / f"output-{rank}", os.O_RDWR | os.O_NONBLOCK))
    flags = [
        "--num-shard=2",
        "--max-restarts=0",
        f"--meeting-place={tmp_path}/meeting",
        f"--shard-output={tmp_path}/output",
    ]
    # The agent's own patience would be 30 s.
    agent = subprocess.run(
        [sys.executable, "-c", _STOPPED, *flags, str(tmp_path / "stopped")],
        env=child_environ(),
        capture_output=True,
        text=True,
        timeout=25,
        check=False,
    )
    for output in outputs:
        os.close(output)
    assert agent.returncode != 0
    assert not Path(f"/proc/{(tmp_path / 'stopped').read_text()}").exists()
