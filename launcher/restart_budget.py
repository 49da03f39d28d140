"""How often a child may be started again: so many starts in a sliding window. Pure; the time is passed in."""

from collections import deque


class RestartBudget:
    """At most `max_starts` starts, the first included, in any `window_s` seconds."""

    def __init__(self, *, max_starts: int, window_s: float) -> None:
        self.max_starts = max_starts
        self.window_s = window_s
        self._starts: deque[float] = deque()

    def record_start(self, now_s: float) -> None:
        self._starts.append(now_s)

    def can_start(self, now_s: float) -> bool:
        while self._starts and self._starts[0] <= now_s - self.window_s:
            self._starts.popleft()
        return len(self._starts) < self.max_starts

    def delay_s(self) -> float:
        """Back-off before the next start: none after a first death in the window, then 1, 2, 4 … 30 seconds."""
        deaths = len(self._starts)
        return 0.0 if deaths <= 1 else min(30.0, 2.0 ** (deaths - 2))
