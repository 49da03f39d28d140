"""The whole service as a user starts it: `python -m launcher` as a process of its own, and what can be seen of it.

Owns the processes of one launch, found by a mark in their environment, and proves at the end that none is left; its
HTTP port, its log, and streams of its public service.
"""

import http.client
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from types import TracebackType
from typing import Any

import grpc
import pytest
from prometheus_client.parser import text_string_to_metric_families

from drafthouse.v1 import generation_pb2, generation_pb2_grpc
from launcher.readiness import free_ports
from tests.processes import child_environ, wait_until

# Bounds against hanging, not expectations: the machine may be loaded.
START_LIMIT_S = 120.0
STOP_LIMIT_S = 60.0

# Not DRAFTHOUSE_…: the launcher keeps its own variables from its children.
_MARK = "E2E_LAUNCH"


@dataclass(frozen=True, slots=True)
class Process:
    """`name` is what the kernel calls it: shards are forked from their agent and have its arguments."""

    pid: int
    name: str
    arguments: list[str]

    def runs(self, module: str) -> bool:
        return self.arguments[1:3] == ["-m", module] and not self.name.startswith("shard-")

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        os.kill(self.pid, number)


class Launch:
    """One launcher with its children. Leaving the context stops it; nothing may be left of it then.

    `flags` are the launcher's, with underscores; two free ports are chosen where none are given.
    """

    def __init__(self, folder: Path, model: Path | str, *, environ: dict[str, str] | None = None, **flags: object):
        self._mark = secrets.token_hex(8)
        self._log_file = folder / "log"
        self._temp = folder / "t"
        self._temp.mkdir()
        http_port, grpc_port = free_ports(2)
        values = {"model_id": model, "port": http_port, "grpc_port": grpc_port, "hostname": "127.0.0.1"} | flags
        self.http_port, self.grpc_port = int(str(values["port"])), int(str(values["grpc_port"]))
        self.grpc_address = f"127.0.0.1:{self.grpc_port}"
        self.channel = grpc.insecure_channel(self.grpc_address)
        self.stub = generation_pb2_grpc.GenerationServiceStub(self.channel)
        with self._log_file.open("w") as log:
            self._launcher = subprocess.Popen(
                [sys.executable, "-m", "launcher"]
                + [f"--{name.replace('_', '-')}={value}" for name, value in values.items()],
                cwd=folder,
                env=child_environ(TMPDIR=str(self._temp), **{_MARK: self._mark}) | (environ or {}),
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def __enter__(self) -> "Launch":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.channel.close()
        try:
            if self._launcher.poll() is None:
                self._launcher.terminate()
                self._launcher.wait(timeout=STOP_LIMIT_S)
            self.wait_gone()
        finally:
            for process in self.processes():
                process.kill()
            self._launcher.wait()
            if error is not None:
                sys.stderr.write(f"--- the launcher's log\n{self.log}")

    # --- its life

    @property
    def log(self) -> str:
        return self._log_file.read_text()

    @property
    def temporary_files(self) -> list[Path]:
        """What is in the launcher's temporary directory."""
        return list(self._temp.iterdir())

    def terminate(self) -> None:
        self._launcher.terminate()

    def kill(self) -> None:
        self._launcher.kill()

    def exit_code(self, limit_s: float = STOP_LIMIT_S) -> int:
        """Waits for the launcher's end."""
        return self._launcher.wait(timeout=limit_s)

    def wait_healthy(self) -> None:
        self.wait_until(lambda: self.health() == 200, "the service to be healthy", START_LIMIT_S)

    def wait_gone(self) -> None:
        wait_until(lambda: not self.processes(), what="all processes of a launch to end", limit_s=20)

    def wait_until(self, condition: Callable[[], bool], what: str, limit_s: float = STOP_LIMIT_S) -> None:
        """Fails at once when the launcher has ended."""
        wait_until(lambda: condition() or self._launcher.poll() is not None, what=what, limit_s=limit_s)
        assert self._launcher.poll() is None, f"the launcher ended while a test waited for {what}"

    # --- its processes

    def processes(self) -> list[Process]:
        """Every process that has the mark of this launch, however it came about. Zombies have none."""
        mark = f"{_MARK}={self._mark}".encode()
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                environ = (entry / "environ").read_bytes().split(b"\0")
                name = (entry / "comm").read_text().strip()
                arguments = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue
            if mark in environ:
                found.append(Process(int(entry.name), name, arguments))
        return found

    def listeners(self) -> set[tuple[str, int]]:
        """Addresses and ports at which its processes wait for TCP connections."""
        found = set()
        for process in self.processes():
            links = [os.readlink(link) for link in Path(f"/proc/{process.pid}/fd").iterdir()]
            inodes = {link.removeprefix("socket:[").rstrip("]") for link in links if link.startswith("socket:[")}
            for table in ("tcp", "tcp6"):
                for line in Path(f"/proc/{process.pid}/net/{table}").read_text().splitlines()[1:]:
                    fields = line.split()
                    # TCP_LISTEN of linux/tcp_states.h
                    if fields[3] == "0A" and fields[9] in inodes:
                        address, port = fields[1].split(":")
                        words = [bytes.fromhex(address[i : i + 8])[::-1] for i in range(0, len(address), 8)]
                        ip = ip_address(b"".join(words))
                        found.add((str(getattr(ip, "ipv4_mapped", None) or ip), int(port, 16)))
        return found

    def shard(self, rank: int) -> Process:
        return self._the_one(lambda p: p.name == f"shard-{rank}")

    @property
    def agent(self) -> Process:
        return self._the_one(lambda p: p.runs("shard.agent"))

    @property
    def router(self) -> Process:
        return self._the_one(lambda p: p.runs("router"))

    def _the_one(self, is_it: Callable[[Process], bool]) -> Process:
        (process,) = filter(is_it, self.processes())
        return process

    # --- its HTTP port

    def health(self) -> int | None:
        """Status of /health; None while nobody answers."""
        try:
            return self._get("/health")[0]
        except (OSError, http.client.HTTPException):
            return None

    def exposition(self) -> str:
        status, body = self._get("/metrics")
        assert status == 200
        return body

    def metric(self, name: str, **labels: str) -> float:
        """A sample's value; the sum over the labels that are not given."""
        samples = [
            sample
            for family in text_string_to_metric_families(self.exposition())
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        ]
        assert samples, f"{name} {labels}"
        return sum(sample.value for sample in samples)

    def _get(self, path: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.http_port, timeout=10)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read().decode()
        finally:
            connection.close()


def prompt(start: int = 5) -> dict[str, list[int]]:
    """Thirty tokens that repeat, so that there is something to look up."""
    return {"ids": [start + i % 5 for i in range(30)]}


class Stream:
    """One Generate call, read as far as a test wants. Fields are those of GenerateRequest."""

    def __init__(self, launch: Launch, *, timeout_s: float = 120.0, new: int = 300, **fields: Any) -> None:
        fields.setdefault("stopping", {"max_new_tokens": new, "ignore_eos": True})
        request = generation_pb2.GenerateRequest(**fields)
        self._call = launch.stub.Generate(request, timeout=timeout_s)
        self.responses: list[generation_pb2.GenerateResponse] = []

    @property
    def token_ids(self) -> list[int]:
        return [token for response in self.responses for token in response.token_ids]

    @property
    def text(self) -> str:
        return "".join(response.text for response in self.responses)

    @property
    def last(self) -> generation_pb2.GenerateResponse:
        return self.responses[-1]

    def read(self, num_tokens: int) -> "Stream":
        """Until at least so many tokens are here; the stream must go on after them."""
        while len(self.token_ids) < num_tokens:
            self.responses.append(next(self._call))
        assert not self.last.finish_reason
        return self

    def finish(self) -> list[int]:
        """All its tokens, at its end."""
        self.responses += self._call
        assert [bool(response.finish_reason) for response in self.responses[-2:]] == [False, True]
        return self.token_ids

    def failure(self) -> Any:
        """The grpc.RpcError it ends with; it has the code and the details of the call."""
        with pytest.raises(grpc.RpcError) as caught:
            self.responses += self._call
        return caught.value

    def cancel(self) -> None:
        self._call.cancel()
