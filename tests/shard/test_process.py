"""The last word to the launcher arrives, whatever is in it."""

from pathlib import Path

import pytest

from router.__main__ import write_fatal as write_fatal_of_router
from shard.process import write_fatal


def test_the_first_message_stays_and_nothing_else(tmp_path: Path) -> None:
    write_fatal(tmp_path, "rank 1: model.safetensors is truncated")
    write_fatal(tmp_path, "rank 0: the others are gone")
    assert (tmp_path / "fatal").read_text() == "rank 1: model.safetensors is truncated"
    assert [path.name for path in tmp_path.iterdir()] == ["fatal"]


@pytest.mark.parametrize("write", [write_fatal, write_fatal_of_router])
def test_bytes_that_are_no_text_are_spelled_out(write, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    write(tmp_path, "/models/caf\udce9 has no config.json")
    assert (tmp_path / "fatal").read_text(encoding="utf-8") == r"/models/caf\udce9 has no config.json"
    assert [path.name for path in tmp_path.iterdir()] == ["fatal"]
