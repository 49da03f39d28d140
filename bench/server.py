"""The service under measurement, started as a user starts it: `python -m launcher`."""

import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from bench.config import child_environ
from bench.processes import child_running, running, wait_until_healthy
from launcher.readiness import free_ports

_HOST = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Server:
    """A ready service. `pid`: of its launcher; `start_s`: from its launch to its readiness."""

    pid: int
    grpc_address: str
    metrics_url: str
    router_pid: int
    start_s: float


@contextmanager
def launched(*, model_id: str | None, threads: int, flags: list[str], prefix_caching: bool = False) -> Iterator[Server]:
    """`flags` are more of the launcher's. BenchError with the end of the log if the service does not become ready.

    `prefix_caching` suits those who measure decoding alone: prompts are measured several times, and answered from the
    cache their processing is not measured again.
    """
    port, grpc_port = free_ports(2)
    command = [sys.executable, "-m", "launcher", "--num-shard=1", *flags]
    command += [f"--threads={threads}", f"--hostname={_HOST}", f"--port={port}", f"--grpc-port={grpc_port}"]
    if not prefix_caching:
        command += ["--disable-prefix-caching"]
    if model_id is not None:
        command += [f"--model-id={model_id}"]
    with tempfile.TemporaryFile() as log:
        start_s = time.monotonic()
        with running(command, environ=child_environ(threads), log=log) as process:
            wait_until_healthy("the service", process, port, log)
            yield Server(
                pid=process.pid,
                grpc_address=f"{_HOST}:{grpc_port}",
                metrics_url=f"http://{_HOST}:{port}/metrics",
                router_pid=child_running(process.pid, "router"),
                start_s=time.monotonic() - start_s,
            )
