"""Real shard processes of one group, started without torchrun so that a test can kill exactly one."""

import secrets
import signal
import subprocess
import sys
from pathlib import Path
from types import TracebackType

from shard.process import MEETING
from tests.processes import child_environ


class ShardProcesses:
    """Ranks listen on `folder`/s-r; their output goes to `folder`/rank-r.log. Flags are those of `python -m shard`;
    None is one that is not given."""

    def __init__(self, folder: Path, checkpoint: Path, *, num_ranks: int = 1, **flags: object) -> None:
        self.folder = folder
        self.num_ranks = num_ranks
        # Drafts are checked whether they pay or not: on models as small as these they do not.
        values = {"dtype": "float64", "max_total_tokens": 256, "draft_min_probability": 0.0} | flags
        self._command = [sys.executable, "-m", "shard", f"--model-path={checkpoint}", f"--uds-path={folder}/s"]
        self._command += [f"--run-dir={folder}"]
        self._command += [f"--{name.replace('_', '-')}={value}" for name, value in values.items() if value is not None]
        self.processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> "ShardProcesses":
        # As the agent does it; whoever is started a second time meets elsewhere.
        meeting = self.folder / f"meeting-{secrets.token_hex(4)}"
        for rank in range(self.num_ranks):
            environ = child_environ(
                RANK=str(rank),
                LOCAL_RANK=str(rank),
                WORLD_SIZE=str(self.num_ranks),
                OMP_NUM_THREADS="1",
                # These tests are about the CPU path, wherever they run.
                CUDA_VISIBLE_DEVICES="",
                **{MEETING: str(meeting)},
            )
            with (self.folder / f"rank-{rank}.log").open("ab") as log:
                self.processes.append(subprocess.Popen(self._command, env=environ, stdout=log, stderr=log))
        return self

    def kill(self, rank: int) -> None:
        self.processes[rank].send_signal(signal.SIGKILL)

    def log(self, rank: int = 0) -> str:
        return (self.folder / f"rank-{rank}.log").read_text()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # As the agent does when one rank is gone: the whole group.
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.wait()
        if error is not None:
            for rank in range(self.num_ranks):
                sys.stderr.write(f"--- rank {rank}\n{self.log(rank)}")
