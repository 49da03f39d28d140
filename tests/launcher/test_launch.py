"""The whole launcher with the real agent, over stand-ins for shards and router that speak just enough."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from launcher.readiness import free_ports
from tests.processes import child_environ, is_running, wait_until

LAUNCH = """
import os, sys
from launcher.config import LauncherConfig, settled
from launcher.launch import Programs, launch
from launcher.logs import LogWriter
from launcher.machine import Machine
model, port, grpc_port, workdir = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
machine = Machine(num_gpus=0, num_cores=4)
config = settled(LauncherConfig(model_id=model, num_shard=2, port=port, grpc_port=grpc_port), machine)
programs = Programs(agent=(sys.executable, workdir + "/agent.py"), router=(sys.executable, workdir + "/router.py"))
sys.exit(launch(config, machine, os.environ, LogWriter(level="info", json_output=False), programs))
"""

AGENT = """
import argparse, os, pathlib, sys, time
from shard.agent import run

def shard(argv):
    parser = argparse.ArgumentParser()
    parser.add_argument("--run-dir", type=pathlib.Path)
    flags, _ = parser.parse_known_args(argv)
    rank = os.environ["RANK"]
    with open(os.environ["PIDS"], "a") as pids:
        pids.write(f"{os.getpid()}\\n")
    print(f"started with {os.environ['OMP_NUM_THREADS']} thread", flush=True)
    if rank == os.environ.get("FAIL_RANK"):
        (flags.run_dir / "fatal.tmp").write_text("model.safetensors is truncated")
        (flags.run_dir / "fatal.tmp").rename(flags.run_dir / "fatal")
        sys.exit(1)
    if rank == os.environ.get("RAISE_RANK"):
        raise ValueError("no such layer")
    time.sleep(600)

run(sys.argv[1:], shard)
"""

ROUTER = """
import argparse, os, signal, sys
from http.server import BaseHTTPRequestHandler, HTTPServer
parser = argparse.ArgumentParser()
parser.add_argument("--port", type=int)
flags, _ = parser.parse_known_args()
pids = lambda: open(os.environ["PIDS"]).read().split() if os.path.exists(os.environ["PIDS"]) else []
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if len(pids()) >= 2 else 503)
        self.end_headers()
    def log_message(self, *args):
        pass
signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
HTTPServer(("127.0.0.1", flags.port), Handler).serve_forever()
"""


class Launched:
    def __init__(self, tmp_path: Path, environ: dict[str, str]) -> None:
        self.pids_file = tmp_path / "pids"
        self.log_file = tmp_path / "log"
        self.temp = tmp_path / "t"
        self.temp.mkdir()
        ports = map(str, free_ports(2))
        with self.log_file.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(tmp_path / "launch.py"), str(tmp_path / "model"), *ports, str(tmp_path)],
                env=child_environ(PIDS=str(self.pids_file), TMPDIR=str(self.temp)) | environ,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def log(self) -> str:
        return self.log_file.read_text()

    def shard_pids(self) -> list[int]:
        return [int(pid) for pid in self.pids_file.read_text().split()] if self.pids_file.exists() else []

    def wait_ready(self) -> None:
        wait_until(lambda: "ready in" in self.log() or self.process.poll() is not None, what="readiness")
        assert self.process.poll() is None, self.log()


@pytest.fixture
def launched(tmp_path: Path) -> Iterator[Callable[..., Launched]]:
    for name, source in (("launch", LAUNCH), ("agent", AGENT), ("router", ROUTER)):
        (tmp_path / f"{name}.py").write_text(source)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps({"max_position_embeddings": 256}))
    started: list[Launched] = []

    def start(**environ: str) -> Launched:
        started.append(Launched(tmp_path, environ))
        return started[-1]

    yield start
    for one in started:
        if one.process.poll() is None:
            one.process.kill()
        one.process.wait()


def test_a_launch_gets_ready_survives_a_killed_shard_and_stops_cleanly(launched: Callable[..., Launched]) -> None:
    service = launched()
    service.wait_ready()
    assert "2 shards, speculation only if the model has heads" in service.log()
    assert "shard 0: started with 2 thread" in service.log()
    assert "shard 1: started with 2 thread" in service.log()
    first = service.shard_pids()
    os.kill(first[0], signal.SIGKILL)
    wait_until(lambda: len(service.shard_pids()) == 4, what="a new group of shards")
    assert not any(is_running(pid) for pid in first)
    service.process.terminate()
    assert service.process.wait(timeout=60) == 0, service.log()
    assert not any(is_running(pid) for pid in service.shard_pids())
    assert "Traceback" not in service.log()
    assert list(service.temp.glob("drafthouse-*")) == []


def test_killing_the_launcher_leaves_no_shard_behind(launched: Callable[..., Launched]) -> None:
    service = launched()
    service.wait_ready()
    service.process.kill()
    wait_until(lambda: not any(is_running(pid) for pid in service.shard_pids()), what="the shards to die")


def test_killing_the_agent_leaves_no_shard_behind_and_a_new_one_is_started(launched: Callable[..., Launched]) -> None:
    service = launched()
    service.wait_ready()
    first = service.shard_pids()
    agent = int(Path(f"/proc/{first[0]}/stat").read_text().rsplit(")", 1)[1].split()[1])
    os.kill(agent, signal.SIGKILL)
    wait_until(lambda: not any(is_running(pid) for pid in first), what="the shards to die")
    wait_until(lambda: len(service.shard_pids()) == 4, what="new shards")


def test_what_a_shard_dies_of_is_said_once_by_itself(launched: Callable[..., Launched]) -> None:
    service = launched(RAISE_RANK="1")
    wait_until(lambda: "shard failed (exitcode: 1) local_rank: 1" in service.log(), what="the failure")
    assert "shard 1: ValueError: no such layer" in service.log()
    assert "multiprocessing" not in service.log()


def test_a_shard_that_cannot_start_ends_the_launch_with_its_message(launched: Callable[..., Launched]) -> None:
    service = launched(FAIL_RANK="1")
    assert service.process.wait(timeout=60) == 1
    assert service.log().count("model.safetensors is truncated") == 1
    assert not any(is_running(pid) for pid in service.shard_pids())
