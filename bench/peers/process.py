"""A peer's script as a process: started, asked over its pipes, held still while others are measured.

The protocol is in children/README.md. Must not know which peer it is.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any

from bench.errors import PeerError
from bench.processes import cpu_seconds, running
from bench.prompts import Prompt
from bench.sample import Arrival, Sample

_LOG_TAIL_LINES = 12
# Idle processes that take more of a core than this are stopped while others are measured.
_IDLE_SHARE = 0.02


@dataclass(frozen=True, slots=True)
class About:
    """What a peer says of itself when it is ready. `start_s`: from its launch until then."""

    version: str
    dtype: str
    start_s: float


class PeerProcess:
    """Answers prompts; idle between them. Every failure is a PeerError with the end of the process's log."""

    def __init__(self, name: str, process: subprocess.Popen[bytes], log: IO[bytes]) -> None:
        self.name = name
        self.is_stopped_between_turns = False
        self._process = process
        self._log = log
        start_s = time.monotonic()
        ready = self._reply()["ready"]
        self.about = About(str(ready["version"]), str(ready["dtype"]), time.monotonic() - start_s)

    def answer(self, prompts: Sequence[Prompt], token_ids: Sequence[list[int]], *, max_new_tokens: int) -> list[Sample]:
        """Blocks until all answers are whole."""
        self._signal(signal.SIGCONT)
        request = {"prompts": list(token_ids), "max_new_tokens": max_new_tokens}
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # its missing reply says so too
        samples = parse_reply(self.name, self._reply(), prompts)
        self._signal(signal.SIGSTOP)
        return samples

    def idle_share(self, seconds: float) -> float:
        """Of a core, over the given time. Afterwards a process that does not rest is stopped between its turns."""
        before = cpu_seconds(self._process.pid)
        time.sleep(seconds)
        share = (cpu_seconds(self._process.pid) - before) / seconds
        self.is_stopped_between_turns = share > _IDLE_SHARE
        self._signal(signal.SIGSTOP)
        return share

    def release(self) -> None:
        """Lets a stopped process run again, so that it can end."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        if self.is_stopped_between_turns and self._process.poll() is None:
            os.kill(self._process.pid, number)

    def _reply(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            self._log.seek(0)
            tail = self._log.read().decode(errors="replace").strip().splitlines()[-_LOG_TAIL_LINES:]
            sys.stderr.write("\n".join([f"{self.name}, the end of its log:", *tail, ""]))
            reason = tail[-1].strip() if tail else "no message"
            raise PeerError(self.name, f"its process ended ({self._process.returncode}): {reason}")
        reply: dict[str, Any] = json.loads(line)
        return reply


def parse_reply(name: str, reply: dict[str, Any], prompts: Sequence[Prompt]) -> list[Sample]:
    """Checks that the counts fit the tokens: a peer that miscounts would be measured wrongly."""
    answers = reply["answers"]
    if len(answers) != len(prompts):
        raise PeerError(name, f"{len(prompts)} prompts, but {len(answers)} answers")
    samples = []
    for prompt, answer in zip(prompts, answers, strict=True):
        arrivals = tuple(map(Arrival, answer["times_s"], answer["counts"]))
        if sum(answer["counts"]) != len(answer["token_ids"]) or not arrivals:
            raise PeerError(name, f"{sum(answer['counts'])} tokens arrived, the answer has {len(answer['token_ids'])}")
        samples.append(Sample(prompt.id, prompt.workload, tuple(answer["token_ids"]), arrivals, answer["steps"]))
    return samples


@contextmanager
def peer_process(name: str, command: list[str], environ: dict[str, str]) -> Iterator[PeerProcess]:
    """`name` as the report calls it. Ready on entry."""
    with tempfile.TemporaryFile() as log, running(command, environ=environ, log=log, piped=True) as process:
        peer = PeerProcess(name, process, log)
        try:
            yield peer
        finally:
            peer.release()
