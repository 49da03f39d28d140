import fcntl
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from launcher.run_folder import run_folder
from tests.processes import child_environ

HOLDER = """
import time
from launcher.run_folder import run_folder
with run_folder() as folder:
    (folder / "shard-0").touch()
    print(folder, flush=True)
    time.sleep(600)
"""


@pytest.fixture(autouse=True)
def temp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_it_is_private_and_gone_at_the_end(temp: Path) -> None:
    with run_folder() as folder:
        assert folder.parent == temp
        assert folder.stat().st_mode & 0o777 == 0o700
        (folder / "shard-0").touch()
    assert not list(temp.iterdir())


def test_that_of_a_killed_launcher_is_removed_by_the_next_one_but_not_that_of_a_living_one(temp: Path) -> None:
    environ = child_environ(TMPDIR=str(temp))
    with subprocess.Popen([sys.executable, "-c", HOLDER], env=environ, stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout is not None
            held = Path(holder.stdout.readline().strip())
            with run_folder():
                assert (held / "shard-0").exists()
        finally:
            holder.send_signal(signal.SIGKILL)
    assert held.exists()
    with run_folder() as folder:
        assert list(temp.iterdir()) == [folder]


def test_what_may_be_somebody_elses_is_left_alone(temp: Path) -> None:
    (temp / "drafthouse-being-made").mkdir()
    (temp / "drafthouse-file").touch()
    (temp / "elsewhere").mkdir()
    (temp / "elsewhere" / "launcher.lock").touch()
    (temp / "drafthouse-link").symlink_to(temp / "elsewhere")
    before = sorted(temp.rglob("*"))
    with run_folder():
        pass
    assert sorted(temp.rglob("*")) == before


def test_one_that_was_removed_before_it_was_locked_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    flock, made = fcntl.flock, []

    def lock(file: object, how: int) -> None:
        flock(file, how)  # type: ignore[call-overload]
        folder = Path(file.name).parent  # type: ignore[attr-defined]
        if not made:
            (folder / "launcher.lock").unlink()
            folder.rmdir()
        made.append(folder)

    monkeypatch.setattr(fcntl, "flock", lock)
    with run_folder() as folder:
        assert folder.is_dir()
        assert made == [made[0], folder]
        assert not made[0].exists()
