"""How log lines of this process look. Owns the root logger's one handler; called once, by the process's entry."""

import json
import logging
from datetime import UTC, datetime


def configure(level: str, json_output: bool) -> None:
    """Lines go to standard error: `time level router: message`, or one JSON object each. `level` as in logging."""
    handler = logging.StreamHandler()
    handler.setFormatter(_JsonFormatter() if json_output else _LineFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # Below "info" gRPC's core speaks of its own event loop at every step.
    logging.getLogger("grpc").setLevel(max(root.level, logging.INFO))


class _LineFormatter(logging.Formatter):
    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s router: %(message)s")

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        return _time(record)


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "process": "router",
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def _time(record: logging.LogRecord) -> str:
    """UTC with milliseconds, ISO 8601."""
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
