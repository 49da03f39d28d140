"""The peer that is measured beside the service: transformers.generate in its own process. Here is our end."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.config import child_environ
from bench.errors import BenchError
from bench.processes import running
from bench.prompts import Prompt
from bench.sample import Arrival, Sample


class TransformersPeer:
    """One prompt at a time; idle between them."""

    def __init__(self, process: subprocess.Popen[bytes], *, max_new_tokens: int) -> None:
        self._process = process
        self._max_new_tokens = max_new_tokens

    def generate(self, prompt: Prompt, token_ids: list[int]) -> Sample:
        """Blocks until the answer is whole. Raises BenchError if the process is gone."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        request = {"token_ids": token_ids, "max_new_tokens": self._max_new_tokens}
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # the empty line below says so too
        line = self._process.stdout.readline()
        if not line:
            raise BenchError("the transformers process ended; its own message is above")
        reply = json.loads(line)
        arrivals = tuple(Arrival(time_s, 1) for time_s in reply["times_s"])
        return Sample(prompt.id, prompt.workload, tuple(reply["token_ids"]), arrivals, len(arrivals))


@contextmanager
def transformers_peer(folder: Path, *, dtype: str, threads: int, max_new_tokens: int) -> Iterator[TransformersPeer]:
    command = [sys.executable, "-m", "bench.transformers_child", str(folder), dtype, str(threads)]
    with (
        tempfile.TemporaryFile() as log,
        running(command, environ=child_environ(threads), log=log, piped=True) as process,
    ):
        try:
            yield TransformersPeer(process, max_new_tokens=max_new_tokens)
        except BenchError:
            log.seek(0)
            sys.stderr.write(log.read().decode(errors="replace"))
            raise
