"""When the next step is planned: while the one before it runs, but not long before that is over.

Pure, the clock is the caller's. A step with prompts takes tenths of a second on a small machine. A plan made at its
beginning would take in nobody who comes while it runs, and they would wait for two such steps; so what such a step is
known to take is mostly let pass. Other steps are short, and the plan that follows one is made at once.

Requests that are sent together arrive one after the other. Where nothing runs, the first one's step would have all the
others wait for it: so it waits a little for them, a small part of what their prompts will take.
"""

from collections import deque

from router.plan import Phase, StepPlan

# Of the time that a step takes at least, so much may pass; so much, in seconds, has to be left for plan and message.
_PART, _LEAD_S = 0.7, 0.005
# A prompt that meets nothing running waits for others for such a part of the time that it and they will take, and at
# most so many seconds: what of it is cached takes no time.
_GATHER, _MOST_GATHER_S = 1 / 16, 0.004
# How fast a row is taken to be again, from step to step, after a machine was fast for once.
_GROWTH = 1.1


class Pacer:
    """Follows the outstanding steps of one session. Times are of any steady clock, in seconds.

    `most_rows`: what a step has room for; once so many have come together nobody else is waited for.
    """

    def __init__(self, most_rows: int = 0) -> None:
        self._most_rows = most_rows
        # About the least that a row of a step with prompts took lately; 0 until one is known.
        self._row_s = 0.0
        # Rows of the outstanding steps, oldest first; 0 for one without prompts.
        self._num_rows: deque[int] = deque()
        # Of the prompts that came while nothing ran.
        self._num_gathered_rows = 0
        self._due_s = 0.0

    def note_arrival(self, num_rows: int, now_s: float) -> None:
        """A prompt of so many rows came."""
        if not self._num_rows:
            self._num_gathered_rows += num_rows
            self._due_s = now_s
            if self._num_gathered_rows < self._most_rows:
                self._due_s += min(_GATHER * self._row_s * self._num_gathered_rows, _MOST_GATHER_S)

    def note_sent(self, plan: StepPlan, now_s: float) -> None:
        self._num_gathered_rows = 0
        self._num_rows.append(plan.num_rows if plan.phase is Phase.PREFILL else 0)
        if len(self._num_rows) == 1:
            self._begin(now_s)

    def note_result(self, duration_s: float, now_s: float) -> None:
        """The oldest step is over, and the one behind it begins."""
        if num_rows := self._num_rows.popleft():
            row_s = duration_s / num_rows
            self._row_s = min(row_s, _GROWTH * self._row_s) if self._row_s else row_s
        self._begin(now_s)

    def wait_s(self, now_s: float) -> float:
        """How long the next plan is to be put off, unless a reply comes before that."""
        return max(0.0, self._due_s - now_s) if self._num_rows or self._num_gathered_rows else 0.0

    def _begin(self, now_s: float) -> None:
        expected_s = self._row_s * self._num_rows[0] if self._num_rows else 0.0
        self._due_s = now_s + min(_PART * expected_s, expected_s - _LEAD_S)
