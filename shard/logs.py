"""How log lines of this process look. Owns the root logger's one handler; called once, by the process's entry."""

import json
import logging
from datetime import UTC, datetime


def configure(level: str, json_output: bool, *, rank: int) -> None:
    """Lines go to standard error, with the rank: as text, or one JSON object each."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Formatter(rank, json_output))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())


class _Formatter(logging.Formatter):
    def __init__(self, rank: int, json_output: bool) -> None:
        super().__init__(f"%(asctime)s %(levelname)s shard {rank}: %(message)s")
        self._rank = rank
        self._json_output = json_output

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")

    def format(self, record: logging.LogRecord) -> str:
        if not self._json_output:
            return super().format(record)
        line = {
            "time": self.formatTime(record),
            "level": record.levelname.lower(),
            "process": "shard",
            "rank": self._rank,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)
