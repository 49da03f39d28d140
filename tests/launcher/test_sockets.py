"""The place of the shards' sockets: one launch at a time, and nothing of it stays."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from launcher.errors import LaunchError
from launcher.sockets import claimed
from tests.processes import child_environ

_CLAIM = """
import sys, time
from launcher.sockets import claimed
with claimed(sys.argv[1], 2):
    print("claimed", flush=True)
    time.sleep(600)
"""


def _listen(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


def test_sockets_of_the_launch_and_of_one_before_are_removed(tmp_path: Path) -> None:
    _listen(tmp_path / "s-0")
    with claimed(str(tmp_path / "s"), 2):
        assert not (tmp_path / "s-0").exists()
        for rank in range(2):
            _listen(tmp_path / f"s-{rank}")
    assert [path.name for path in tmp_path.iterdir()] == ["s.lock"]


def test_a_second_launch_is_refused_until_the_first_has_ended_however_it_ended(tmp_path: Path) -> None:
    prefix = str(tmp_path / "s")
    with subprocess.Popen(
        [sys.executable, "-c", _CLAIM, prefix], stdout=subprocess.PIPE, text=True, env=child_environ()
    ) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "claimed\n"
        _listen(tmp_path / "s-0")
        with pytest.raises(LaunchError, match=r"another launcher are at .*--shard-uds-path"), claimed(prefix, 2):
            pytest.fail("taken twice")
        assert (tmp_path / "s-0").exists()
        first.kill()
        first.wait()
    with claimed(prefix, 2):
        assert not (tmp_path / "s-0").exists()


def test_what_is_no_socket_is_named(tmp_path: Path) -> None:
    (tmp_path / "s-1").mkdir()
    with pytest.raises(LaunchError, match=r"--shard-uds-path .*s-1"), claimed(str(tmp_path / "s"), 2):
        pytest.fail("a folder was taken for a socket")


def test_an_error_of_the_launch_itself_is_passed_on(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), claimed(str(tmp_path / "s"), 1):
        raise FileNotFoundError("weights")
