import io
import json
import os

import pytest

from launcher.log_pump import LogPump
from launcher.logs import LogWriter
from tests.processes import wait_until


def test_text_lines_of_children_pass_through_and_raw_ones_get_their_process() -> None:
    stream = io.StringIO()
    log = LogWriter(level="info", json_output=False, stream=stream)
    log.relay("shard 1", "2026-01-31 12:00:00,123 INFO shard 1: loaded")
    log.relay("shard 1", "RuntimeError: boom")
    first, second = stream.getvalue().splitlines()
    assert first == "2026-01-31 12:00:00,123 INFO shard 1: loaded"
    assert second.endswith("shard 1: RuntimeError: boom")


def test_every_json_line_is_an_object_whatever_a_child_prints() -> None:
    stream = io.StringIO()
    log = LogWriter(level="info", json_output=True, stream=stream)
    log.relay("router", '{"level": "info", "message": "x"}')
    log.relay("router", '{"broken')
    log.relay("shard 0", "Traceback")
    log.info("ready")
    entries = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert entries[0] == {"level": "info", "message": "x"}
    assert [(e["process"], e["message"]) for e in entries[1:]] == [
        ("router", '{"broken'),
        ("shard 0", "Traceback"),
        ("launcher", "ready"),
    ]


def test_a_traceback_is_not_lost_at_the_quietest_level() -> None:
    stream = io.StringIO()
    log = LogWriter(level="error", json_output=False, stream=stream)
    log.relay("shard 0", "RuntimeError: boom")
    log.info("not this")
    assert stream.getvalue().count("\n") == 1


def test_the_pump_hands_on_whole_lines_and_the_rest_at_the_end(pump: LogPump) -> None:
    read, write = os.pipe()
    lines: list[str] = []
    ended: list[bool] = []
    pump.add(read, lines.append, lambda: ended.append(True))
    os.write(write, b"one\ntw")
    wait_until(lambda: lines == ["one"], what="the first line")
    os.write(write, "o é".encode()[:-1])
    os.write(write, "é".encode()[-1:] + b"\n10%\r20%\r\nlast")
    os.close(write)
    wait_until(lambda: bool(ended), what="the end")
    assert lines == ["one", "two é", "20%", "last"]


def test_closing_the_pump_hands_on_what_is_in_a_pipe_that_stays_open() -> None:
    pump = LogPump()
    read, write = os.pipe()
    lines: list[str] = []
    pump.add(read, lines.append)
    os.write(write, b"a\nb")
    pump.close()
    os.close(write)
    assert lines == ["a", "b"]


@pytest.mark.parametrize("error", [OSError("No space left on device"), ValueError("closed file")])
def test_a_log_that_cannot_be_written_stops_nothing(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    log = LogWriter(level="info", json_output=False, stream=stream)

    def fail(_: str) -> int:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(log, "_stream", type("Full", (), {"write": staticmethod(fail), "flush": lambda _: None})())
        log.info("lost")
    log.info("said")
    assert "said" in stream.getvalue()


def test_a_reader_that_goes_stops_nothing() -> None:
    reading, writing = os.pipe()
    with os.fdopen(writing, "w") as stream:
        log = LogWriter(level="info", json_output=False, stream=stream)
        os.close(reading)
        for _ in range(3):
            log.info("nobody reads this")
