"""Virtual environments of peers: made on demand, kept in the user's cache, found again by what they were asked to hold.

Must not know what a peer is for. An environment is whole when its stamp is there; one without is installed again.
"""

import fcntl
import hashlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.errors import PeerError
from bench.peers.catalogue import Peer
from bench.say import say
from launcher.gguf_cache import cache_folder

_STAMP = ".complete"
_LOG = "install.log"
# What pip says that tells how far it is.
_PROGRESS = ("Collecting ", "Downloading ", "Building wheel", "Installing collected", "Successfully installed")


def environment_folder(peer: Peer) -> Path:
    """Named by the requirements and the Python they are installed for, so that a change of either makes a new one."""
    asked = repr((peer.pip, sorted(peer.pip_environ.items()), sys.version_info[:2]))
    return cache_folder() / "bench" / f"{peer.name}-{hashlib.sha256(asked.encode()).hexdigest()[:12]}"


def is_installed(peer: Peer) -> bool:
    return not peer.pip or (environment_folder(peer) / _STAMP).is_file()


def python_of(peer: Peer) -> Path:
    """The interpreter that runs the peer's script; see `install`."""
    return environment_folder(peer) / "bin" / "python" if peer.pip else Path(sys.executable)


def install(peer: Peer) -> None:
    """Makes the environment if it is not there. Raises PeerError with the reason, which names the peer."""
    if is_installed(peer):
        return
    folder = environment_folder(peer)
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder / ".lock"):
        if is_installed(peer):
            return
        say(f"{peer.name}: making its environment, once, in {folder}")
        environ = {**os.environ, **peer.pip_environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
        pip = [str(python_of(peer)), "-m", "pip"]
        with (folder / _LOG).open("w+") as log:
            commands = [[sys.executable, "-m", "venv", str(folder)]]
            for command in [*commands, *([*pip, *arguments] for arguments in peer.pip)]:
                _run(peer, command, environ, log_path=folder / _LOG, log_write=log.write)
        (folder / _STAMP).touch()


def _run(
    peer: Peer,
    command: list[str],
    environ: dict[str, str],
    *,
    log_path: Path,
    log_write: Callable[[str], int],
) -> None:
    last, error = "", ""
    with subprocess.Popen(
        command, env=environ, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            log_write(line)
            last = line.strip() or last
            if line.startswith("ERROR"):
                error = error or line.strip()
            if line.strip().startswith(_PROGRESS):
                say(f"{peer.name}: {line.strip()[:140]}")
    if process.returncode != 0:
        raise PeerError(peer.name, f"`{' '.join(command[1:])}` failed: {error or last}; its output is in {log_path}")


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Held by one benchmark at a time; the kernel lets go when its holder dies."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
