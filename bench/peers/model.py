"""The model as each peer reads it: the folder the service serves, or a file made of it once and kept in the cache."""

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

from bench.config import peer_environ
from bench.errors import PeerError
from bench.peers.catalogue import Peer
from bench.peers.environment import python_of
from bench.say import say
from launcher.gguf_cache import cache_folder


def prepared_model(peer: Peer, *, folder: Path, gguf: Path | None, quantize: str | None, threads: int) -> Path:
    """What the peer's script gets as `--model`. `folder` is in safetensors; `gguf` is what that was made of, if it was.

    Needs the peer's environment. Raises PeerError where the peer cannot read this model, or not in 8 bits.
    """
    if quantize is not None and not peer.has_int8:
        raise PeerError(peer.name, f"it is not measured with weights in {quantize}")
    if peer.needs_gguf and gguf is None:
        raise PeerError(peer.name, "it reads GGUF only; give a GGUF file as --model-id")
    source = gguf if peer.needs_gguf and gguf is not None else folder
    if not peer.converts:
        return source
    target = cache_folder() / "bench" / "models" / f"{peer.name}-{source.name[:60]}-{_digest(peer, source, quantize)}"
    if target.is_dir():
        return target
    say(f"{peer.name}: converting the model, once: {target}")
    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a conversion that was killed
    partial.parent.mkdir(parents=True, exist_ok=True)
    command = [
        str(python_of(peer)),
        str(peer.script),
        f"--model={source}",
        f"--prepare={partial}",
        *quantize_flags(quantize),
    ]
    environ = peer_environ(threads, peer.run_environ)
    done = subprocess.run(command, env=environ, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines()
        raise PeerError(peer.name, f"the model cannot be converted: {lines[-1] if lines else done.returncode}")
    os.rename(partial, target)
    return target


def quantize_flags(quantize: str | None) -> list[str]:
    """Of a peer's script."""
    return [] if quantize is None else [f"--quantize={quantize}"]


def _digest(peer: Peer, source: Path, quantize: str | None) -> str:
    """Changes with the files of the model, and with the script that converts them."""
    files = sorted(source.iterdir()) if source.is_dir() else [source]
    facts = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return hashlib.sha256(repr((str(source), quantize, facts)).encode() + peer.script.read_bytes()).hexdigest()[:12]
