import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from launcher.errors import LaunchError
from launcher.gguf_cache import converted_folder
from tests.launcher.conftest import RecordingLog

CONVERTER = """
import pathlib, sys
flags = dict(zip(sys.argv[1::2], sys.argv[2::2]))
out = pathlib.Path(flags["--output"])
assert not out.exists()
out.mkdir()
print("reading", flush=True)
(out / "dtype").write_text(flags["--dtype"])
with open(flags["--gguf"] + ".runs", "a") as runs:
    runs.write("x")
"""


@pytest.fixture
def gguf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF, more or less")
    return path


def test_a_file_is_converted_once_for_each_format(
    gguf: Path, log: RecordingLog, program: Callable[[str, str], list[str]]
) -> None:
    converter = program("converter", CONVERTER)
    first = converted_folder(gguf, "bfloat16", log, converter=converter)
    assert converted_folder(gguf, "bfloat16", log, converter=converter) == first
    wide = converted_folder(gguf, "float64", log, converter=converter)
    assert converted_folder(gguf, "float32", log, converter=converter) == wide
    assert ((first / "dtype").read_text(), (wide / "dtype").read_text()) == ("bfloat16", "float32")
    assert Path(f"{gguf}.runs").read_text() == "xx"
    assert "convert: reading" in log.text


def test_two_launchers_at_a_time_convert_once(
    gguf: Path, log: RecordingLog, program: Callable[[str, str], list[str]]
) -> None:
    converter = program("converter", CONVERTER + "import time; time.sleep(0.3)\n")
    threads = [
        threading.Thread(target=converted_folder, args=(gguf, "bfloat16", log), kwargs={"converter": converter})
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Path(f"{gguf}.runs").read_text() == "x"


def test_a_failure_is_one_message_and_leaves_nothing_that_looks_converted(
    gguf: Path, log: RecordingLog, program: Callable[[str, str], list[str]]
) -> None:
    failing = program("failing", CONVERTER + "sys.stderr.write('noise\\n' * 50000); sys.exit('its shape is wrong')\n")
    with pytest.raises(LaunchError, match=r"^model\.gguf cannot be served: its shape is wrong$"):
        converted_folder(gguf, "bfloat16", log, converter=failing)
    assert not list(gguf.parent.rglob("*.partial"))
    assert converted_folder(gguf, "bfloat16", log, converter=program("converter", CONVERTER)).is_dir()


def test_a_killed_conversion_says_so(gguf: Path, log: RecordingLog) -> None:
    killed = [sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"]
    with pytest.raises(LaunchError, match="was ended by SIGKILL; out of memory"):
        converted_folder(gguf, "bfloat16", log, converter=killed)
