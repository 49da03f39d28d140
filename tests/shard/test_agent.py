"""The agent asks nothing of CUDA: whoever is forked after that cannot use it. (Seen with torch 2.11 on a GPU.)"""

import os
import subprocess
import sys
from pathlib import Path

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
    flags = ["--num-shard=1", "--max-restarts=0", "--meeting-point=127.0.0.1:0", f"--shard-output={pipe}", "--flag"]
    with subprocess.Popen(
        [sys.executable, "-c", _AGENT, *flags],
        env=os.environ | {"PYTHONPATH": ".:proto"},
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
