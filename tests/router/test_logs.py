import json
import logging
import re

import pytest

from router import logs

pytestmark = pytest.mark.usefixtures("own_root_logger")


def test_a_line_has_time_level_process_and_message(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info", json_output=False)
    logging.getLogger("router.x").info("ready on %d", 3000)
    logging.getLogger("router.x").debug("unseen")
    line = capsys.readouterr().err
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z INFO router: ready on 3000\n", line)


def test_json_output_is_one_object_a_line_even_with_an_exception(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("warning", json_output=True)
    try:
        raise ValueError("a\nb")
    except ValueError:
        logging.getLogger("router.x").exception('a "quote"\nand 你')
    (line,) = capsys.readouterr().err.splitlines()
    entry = json.loads(line)
    assert (entry["level"], entry["process"], entry["logger"]) == ("error", "router", "router.x")
    assert entry["message"] == 'a "quote"\nand 你'
    assert "ValueError: a\nb" in entry["exception"]


def test_configuring_twice_does_not_double_the_lines(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info", json_output=False)
    logs.configure("info", json_output=False)
    logging.info("once")
    assert capsys.readouterr().err.count("once") == 1
