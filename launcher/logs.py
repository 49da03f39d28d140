"""The launcher's one log: its own lines and those of every child, as text or as JSON, one line each.

Children that already write "time level process: message" or a JSON object pass through unchanged; anything else (a
traceback, a library's print) gets the time, a level and the name of the process it came from.
"""

import json
import os
import re
import sys
import threading
from datetime import UTC, datetime
from typing import TextIO

LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}

# 2026-01-31 12:00:00,123 INFO router: …   (also with T, a point, an offset, no fraction; level in either case)
_FORMATTED = re.compile(
    r"^\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d\S* +(DEBUG|INFO|WARNING|ERROR|CRITICAL) +(router|shard( \d+)?|launcher)\b",
    re.I,
)


class LogWriter:
    """Writes whole lines to one stream; safe to call from any thread."""

    def __init__(self, *, level: str, json_output: bool, stream: TextIO | None = None) -> None:
        self._threshold = LEVELS[level.lower()]
        self._json_output = json_output
        self._stream = stream or sys.stdout
        self._lock = threading.Lock()

    def log(self, level: str, process: str, message: str) -> None:
        if LEVELS[level] < self._threshold:
            return
        time = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        if self._json_output:
            entry = {"time": time, "level": level, "process": process, "message": message}
            self._write(json.dumps(entry, ensure_ascii=False))
        else:
            self._write(f"{time} {level.upper()} {process}: {message}")

    def relay(self, process: str, line: str) -> None:
        """A line a child wrote."""
        if not line.strip():
            return
        if self._is_finished(line):
            self._write(line)
        else:
            # Below "error" a raw line would be lost at the quietest setting, and it is most likely a traceback.
            self.log("error" if self._threshold > LEVELS["info"] else "info", process, line)

    def info(self, message: str) -> None:
        self.log("info", "launcher", message)

    def warning(self, message: str) -> None:
        self.log("warning", "launcher", message)

    def error(self, message: str) -> None:
        self.log("error", "launcher", message)

    def _is_finished(self, line: str) -> bool:
        if not self._json_output:
            return _FORMATTED.match(line) is not None
        if not line.startswith("{"):
            return False
        try:
            return isinstance(json.loads(line), dict)
        except ValueError:
            return False

    def _write(self, line: str) -> None:
        """Whatever happens to the log, the service goes on: nobody reads it any more, or the disk is full."""
        with self._lock:
            try:
                self._stream.write(line + "\n")
                self._stream.flush()
            except BrokenPipeError:
                # What is left in the buffer would be an error again at the exit.
                os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
            except (OSError, ValueError):
                pass
