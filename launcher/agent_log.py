"""Reads what the shards' agent itself prints: keeps what tells an operator something, drops its banners.

The shards do not print here, they have pipes of their own. Format of the agent's log lines: torch's glog style,
`W1123 16:21:47.151000 4402 path/api.py:1028] message`.
"""

import re

_LINE = re.compile(r"^([IWEFC])\d{4} \d\d:\d\d:\d\d\.\d+ \d+ \S+:\d+\] (.*)$")
_LEVELS = {"I": "debug", "W": "warning", "E": "error", "F": "error", "C": "error"}
# Said at every restart; the launcher reports it in its own words.
_ROUTINE = "Closing process"
# Tracebacks that repeat what was said before: a shard failed, or too many did.
_EXPECTED = ("ProcessExitedException", "ChildFailedError")
_TRACEBACK = "Traceback (most recent call last)"


class AgentLog:
    """One agent's output, from its start to its end. Lines come out as (level, message)."""

    def __init__(self) -> None:
        self._traceback: list[str] = []

    def feed(self, line: str) -> list[tuple[str, str]]:
        match = _LINE.match(line)
        message = match[2] if match else line
        if self._traceback or message.startswith(_TRACEBACK):
            # Held back until its end says whether it is news. One that is logged ends with the exception, one that the
            # agent dies of with the agent.
            self._traceback.append(message)
            is_over = match is not None and message[:1].strip() and not message.startswith(_TRACEBACK)
            return self.close() if is_over else []
        if match is None:
            return [("info", line)] if line.strip() else []
        level, message = _LEVELS[match[1]], message.split(" of fn:")[0]
        if _ROUTINE in message:
            level = "debug"
        if message.startswith("failed (exitcode"):
            # A warning: the group is started again, or an error of its own says why it is not.
            level, message = "warning", f"shard {message}"
        return [(level, message)]

    def close(self) -> list[tuple[str, str]]:
        """The last traceback, if it says more than that shards failed."""
        held, self._traceback = self._traceback, []
        if any(name in line for line in held for name in _EXPECTED):
            return []
        return [("error", line) for line in held]
