"""What takes long with a long message is done beside the event loop, of few at a time, and the others that wait for it
are counted like requests that run. Must not know what is done."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from drafthouse.v1 import generation_pb2

_Reply = TypeVar("_Reply")

_Message = generation_pb2.GenerateRequest | generation_pb2.TokenizeRequest

# Tokenizing so many bytes takes longer than the streams beside it should wait.
_LONG_BYTES = 8192
# What a template writes around each message of a chat, about.
_BYTES_OF_TEMPLATE = 32
# They share the interpreter with the event loop.
_MOST_AT_A_TIME = 4


class LongMessages:
    def __init__(self, refuse_if_full: Callable[[int], None]) -> None:
        """The argument raises Overloaded where beside so many that wait here no request has room."""
        self._refuse_if_full = refuse_if_full
        # Not the event loop's own, whose threads it waits for when it ends: nobody wants what is left then.
        self._pool = ThreadPoolExecutor(_MOST_AT_A_TIME, thread_name_prefix="long-message")
        self._num_here = 0

    async def run(self, message: _Message, work: Callable[[], _Reply]) -> _Reply:
        """`work`, here or beside. Whoever is cancelled while it waits costs nothing."""
        if message.ByteSize() + _BYTES_OF_TEMPLATE * len(message.chat.messages) <= _LONG_BYTES:
            return work()
        self._refuse_if_full(self._num_here)
        self._num_here += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, work)
        finally:
            self._num_here -= 1
