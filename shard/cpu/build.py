"""Compiles kernels.c for this machine, once per source, compiler and processor, and keeps it in the user's cache.

Must not know what the kernels do. No compiler is no error: the caller goes on without.
"""

import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

SOURCE = Path(__file__).with_name("kernels.c")
_COMPILE = ("-O3", "-march=native", "-ffast-math", "-fopenmp", "-fPIC", "-c")


class BuildError(Exception):
    """There is no compiler, or it failed; the message says which."""


def built_library() -> Path:
    """The shared library, compiled now (one to two seconds) if it is not in the cache."""
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        raise BuildError("no C compiler was found")
    version = _run([compiler, "--version"])
    key = hashlib.sha256("\n".join([SOURCE.read_text(), version, _processor(), *_COMPILE]).encode()).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "drafthouse"
    library = cache / f"kernels-{key}.so"
    if not library.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as scratch:
            built = Path(scratch) / "kernels.o", Path(scratch) / "kernels.so"
            _run([compiler, *_COMPILE, str(SOURCE), "-o", str(built[0])])
            # Without -fopenmp here: the OpenMP functions are to be those of the library that torch brought.
            _run([compiler, "-shared", str(built[0]), "-o", str(built[1]), "-lm"])
            # Ranks may do this at the same time; each rename puts a whole file in place.
            built[1].replace(library)
    return library


def _run(command: list[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    except (OSError, subprocess.SubprocessError) as error:
        detail = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
        raise BuildError(f"{Path(command[0]).name} failed: {detail[-1] if detail else error}") from error


def _processor() -> str:
    """What -march=native depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return "\n".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))
