"""Whose message goes next: a message takes the router as long as a sequence's part of a step or longer, and on a GPU
the steps of many sequences are short, so not every step of every stream has one of its own.

Messages may go as fast as one every _MESSAGE_S, the stream first that has waited longest; each then has all that came
since. Must not know what a message says.
"""

import asyncio
import time
from collections import OrderedDict

from router.stream import Stream

_MESSAGE_S = 0.0004
# Those that have to wait go together, about so much later at most: of messages that go together each takes half as much
# as one that goes alone. What went unused while nobody waited may be made up for as far.
_TOGETHER_S = 0.01


class Turns:
    """Used on the event loop."""

    def __init__(self) -> None:
        self._waiting: OrderedDict[Stream, None] = OrderedDict()
        # When the next message may go.
        self._next_s = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def ask(self, stream: Stream) -> None:
        """There is news of a stream that goes on. The first of it goes at once: somebody waits for an answer."""
        if stream.is_silent:
            stream.give_turn()
        elif not stream.has_turn:
            # Who waits already keeps its place.
            self._waiting[stream] = None
            if self._timer is None:
                self._next_s = max(self._next_s, time.monotonic() - _TOGETHER_S)
                self._give()

    def _give(self) -> None:
        self._timer = None
        now = time.monotonic()
        while self._waiting and self._next_s <= now:
            stream, _ = self._waiting.popitem(last=False)
            if not stream.is_ended:
                self._next_s += _MESSAGE_S
                stream.give_turn()
        if self._waiting:
            all_may_go_s = self._next_s + len(self._waiting) * _MESSAGE_S - now
            self._timer = asyncio.get_running_loop().call_later(min(all_may_go_s, _TOGETHER_S), self._give)
