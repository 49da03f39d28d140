"""The base behind our own service: one that runs already, or a child of this process on loopback ports of its own."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from launcher.options import without_variables
from launcher.process import tied_to_parent
from launcher.readiness import free_ports, is_healthy
from trainer.errors import TrainError

_HOST = "127.0.0.1"
_STOP_S = 30.0


@contextmanager
def launched(model: Path, *, dtype: str, use_gpu: bool, threads: int | None, log_file: Path) -> Iterator[str]:
    """The gRPC address of a service that is ready; stopped at the end, and killed if this process is."""
    http_port, grpc_port = free_ports(2)
    command = [sys.executable, "-m", "launcher", f"--model-id={model}", f"--dtype={dtype}", "--speculate=0"]
    command += [f"--hostname={_HOST}", f"--port={http_port}", f"--grpc-port={grpc_port}"]
    command += [f"--threads={threads}"] if threads is not None else []
    # A variable meant for another launcher would become a flag of this one.
    environ = without_variables(os.environ)
    if not use_gpu:
        environ["CUDA_VISIBLE_DEVICES"] = ""
    with log_file.open("w") as log:
        process = subprocess.Popen(
            tied_to_parent(command),
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            process_group=0,  # a terminal's Ctrl-C is for this process, which then stops the child
        )
    try:
        click.echo(f"starting the service for the base, its log is {log_file}")
        while not is_healthy(_HOST, http_port):
            if process.poll() is not None:
                lines = log_file.read_text(errors="replace").strip().splitlines()
                raise TrainError(
                    f"the service for the base does not start: {lines[-1] if lines else 'it said nothing'}"
                )
            time.sleep(0.1)
        yield f"{_HOST}:{grpc_port}"
    finally:
        process.terminate()
        try:
            _wait(process)
        except SystemExit:
            # This run is asked to end while its service ends: the kernel would kill that with this process.
            _wait(process)
            raise


def _wait(process: "subprocess.Popen[bytes]") -> None:
    try:
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
