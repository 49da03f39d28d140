"""Reads what torchrun's agent itself prints: keeps what tells an operator something, drops its banners.

The shards do not print here, they have pipes of their own. Format of the agent's log lines: torch's glog style,
`W1123 16:21:47.151000 4402 path/api.py:1028] message`.
"""

import re

_LINE = re.compile(r"^([IWEFC])\d{4} \d\d:\d\d:\d\d\.\d+ \d+ \S+:\d+\] (.*)$")
_LEVELS = {"I": "debug", "W": "warning", "E": "error", "F": "error", "C": "error"}
# Said at every orderly stop and at every restart; the launcher reports both in its own words.
_ROUTINE = ("closing signal", "death signal, shutting down workers")
# How the agent ends when shards failed or it was told to stop: a traceback that repeats what was said before.
_EXPECTED_ENDS = ("ChildFailedError", "SignalException")


class AgentLog:
    """One agent's output, from its start to its end. Lines come out as (level, message)."""

    def __init__(self) -> None:
        self._traceback: list[str] = []

    def feed(self, line: str) -> list[tuple[str, str]]:
        if self._traceback or line.startswith("Traceback (most recent call last)"):
            # Held back until the end says whether it is news: an agent never lives past its own traceback.
            self._traceback.append(line)
            return []
        match = _LINE.match(line)
        if match is None:
            return [("info", line)] if line.strip() else []
        level, message = _LEVELS[match[1]], match[2].split(" of binary:")[0]
        if any(phrase in message for phrase in _ROUTINE):
            level = "debug"
        if message.startswith("failed (exitcode"):
            # A warning: the group is started again, or an error of its own says why it is not.
            level, message = "warning", f"shard {message}"
        return [(level, message)]

    def close(self) -> list[tuple[str, str]]:
        """The traceback the agent died of, if it says more than that shards failed."""
        held, self._traceback = self._traceback, []
        if any(name in line for line in held for name in _EXPECTED_ENDS):
            return []
        return [("error", line) for line in held]
