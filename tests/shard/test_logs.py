import json
import logging
import re

import pytest

from shard import logs

pytestmark = pytest.mark.usefixtures("own_root_logger")


def test_a_line_has_time_level_rank_and_message(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info", json_output=False, rank=3)
    logging.getLogger("shard.x").warning("%d blocks", 7)
    logging.getLogger("shard.x").debug("unseen")
    line = capsys.readouterr().err
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z WARNING shard 3: 7 blocks\n", line)


def test_json_output_is_one_object_a_line_even_with_an_exception(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("warning", json_output=True, rank=1)
    try:
        raise ValueError("a\nb")
    except ValueError:
        logging.getLogger("shard.x").exception('a "quote"\nand 你')
    (line,) = capsys.readouterr().err.splitlines()
    entry = json.loads(line)
    assert (entry["level"], entry["process"], entry["rank"], entry["logger"]) == ("error", "shard", 1, "shard.x")
    assert entry["message"] == 'a "quote"\nand 你'
    assert "ValueError: a\nb" in entry["exception"]
