"""Several async generators read as one, each item as soon as it is there.

Owns their closing: whatever ends the reader closes every one of them. Knows nothing of what they yield.
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import TypeVar

_Item = TypeVar("_Item")


async def interleave(streams: Sequence[AsyncGenerator[_Item, None]]) -> AsyncGenerator[tuple[int, _Item], None]:
    """Yields (index of the stream, item). The first stream that raises ends all; its error is raised here."""
    if len(streams) == 1:
        async with aclosing(streams[0]) as stream:
            async for item in stream:
                yield 0, item
        return

    # One slot: a reader that does not keep up holds the streams back, as it would hold a single one. None: one ended.
    queue: asyncio.Queue[tuple[int, _Item] | Exception | None] = asyncio.Queue(maxsize=1)

    async def read(index: int, stream: AsyncGenerator[_Item, None]) -> None:
        try:
            async with aclosing(stream):
                async for item in stream:
                    await queue.put((index, item))
        except Exception as error:
            await queue.put(error)
        else:
            await queue.put(None)

    readers = [asyncio.create_task(read(index, stream)) for index, stream in enumerate(streams)]
    num_running = len(readers)
    try:
        while num_running:
            entry = await queue.get()
            if entry is None:
                num_running -= 1
            elif isinstance(entry, Exception):
                raise entry
            else:
                yield entry
    finally:
        for reader in readers:
            reader.cancel()
        await asyncio.gather(*readers, return_exceptions=True)
