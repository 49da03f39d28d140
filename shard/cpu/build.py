"""Compiles the .c files of this folder into one library, once per source, compiler and processor, in the user's cache
or, where that cannot be written, for as long as there are temporary files.

Must not know what the kernels do. No compiler is no error: the caller goes on without. It is GCC: others bring an
OpenMP library of their own, and the kernels share torch's.
"""

import ctypes
import fcntl
import hashlib
import os
import platform
import shlex
import shutil
import stat
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

SOURCES = tuple(sorted(Path(__file__).parent.glob("*.c")))
HEADERS = tuple(sorted(Path(__file__).parent.glob("*.h")))
# Not -ffast-math: sums are to be taken in the order in which they are written (vectors.h).
_COMPILE = ("-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-fPIC", "-c")
# Products of pairs of bfloat16 are twice as fast as those of floats on AMD's Zen 4 and half as fast on Intel's Emerald
# Rapids (bench/RESULTS.md, section 9).
_WITHOUT_PAIRS = "-U__AVX512BF16__"

# Of folders in which a library is made; a killed build leaves one.
_SCRATCH = "kernels-tmp"

_ADVICE = "set XDG_CACHE_HOME to a folder that can be written and run from"

_CPUINFO = ("vendor_id", "model name", "flags", "Features")


class BuildError(Exception):
    """There is no compiler, or it failed; the message says which."""


def loaded_library() -> ctypes.CDLL:
    """As `built_library`."""
    library = built_library()
    try:
        return ctypes.CDLL(str(library))
    except OSError:
        # Damaged, or of another machine's libraries: made anew once.
        library.unlink(missing_ok=True)
        return ctypes.CDLL(str(built_library()))


def built_library() -> Path:
    """The shared library, compiled now (a few seconds) if it is not there. OSError if nothing can be written."""
    compiler = shlex.split(os.environ.get("CC") or "cc")
    if shutil.which(compiler[0]) is None:
        raise BuildError(f"there is no C compiler {compiler[0]!r} (CC names another)")
    version, flags = _run([*compiler, "--version"]), _flags()
    if "clang" in version:
        raise BuildError(f"{compiler[0]} is clang, and the kernels need GCC (CC names another)")
    sources = [source.read_text() for source in (*SOURCES, *HEADERS)]
    key = hashlib.sha256("\n".join([*sources, version, _processor(), *flags]).encode()).hexdigest()[:16]
    cache = _cache_folder()
    library = cache / f"kernels-{key}.so"
    if not os.access(library, os.R_OK):
        cache = cache if _is_usable(cache) else _temporary_folder()
        library = cache / library.name
    if not os.access(library, os.R_OK):
        # Ranks, and the launcher for them, may want it at the same time: who comes second finds it made.
        with (cache / "kernels.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            for stale in cache.glob(f"{_SCRATCH}*"):
                shutil.rmtree(stale, ignore_errors=True)
            if not library.exists():
                _build(compiler, flags, library)
    return library


def _cache_folder() -> Path:
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "drafthouse"
    except RuntimeError:
        # Nobody's home.
        return _temporary_folder()


def _is_usable(folder: Path) -> bool:
    """There, now, to be written and run from. A container's files are often read only."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK) and not os.statvfs(folder).f_flag & os.ST_NOEXEC


def _temporary_folder() -> Path:
    """This user's alone: what is loaded from it is run."""
    folder = Path(tempfile.gettempdir()) / f"drafthouse-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise BuildError(f"{folder} is not this user's alone; {_ADVICE}")
    if not _is_usable(folder):
        raise BuildError(f"nothing can be run from {folder}; {_ADVICE}")
    return folder


def _build(compiler: list[str], flags: tuple[str, ...], library: Path) -> None:
    with tempfile.TemporaryDirectory(prefix=_SCRATCH, dir=library.parent) as scratch, ThreadPoolExecutor() as pool:
        objects = [str(Path(scratch) / f"{source.stem}.o") for source in SOURCES]
        commands = [
            [*compiler, *flags, str(source), "-o", compiled] for source, compiled in zip(SOURCES, objects, strict=True)
        ]
        list(pool.map(_run, commands))
        built = Path(scratch) / "kernels.so"
        # Without -fopenmp here: the OpenMP functions are to be those of the library that torch brought.
        _run([*compiler, "-shared", *objects, "-o", str(built), "-lm"])
        # A library that a power cut left half written would end every later start.
        with built.open("rb") as file:
            os.fsync(file.fileno())
        built.replace(library)


def _flags() -> tuple[str, ...]:
    return (*_COMPILE, _WITHOUT_PAIRS) if "GenuineIntel" in _processor() else _COMPILE


def _run(command: list[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=300).stdout
    except (OSError, subprocess.SubprocessError) as error:
        lines = (getattr(error, "stderr", None) or str(error)).strip().splitlines() or [repr(error)]
        # The last line of a compiler says that it ended.
        reason = next((line for line in lines if "error:" in line or "cannot find" in line), lines[-1])
        raise BuildError(f"{Path(command[0]).name} failed: {reason}") from error


def _processor() -> str:
    """What -march=native depends on, and whose it is."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return "\n".join(sorted({line for line in lines if line.startswith(_CPUINFO)}))


if __name__ == "__main__":
    built_library()
