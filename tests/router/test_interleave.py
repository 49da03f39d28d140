import asyncio
from collections.abc import AsyncGenerator

import pytest

from router.interleave import interleave


class Stream:
    """Counts up to `length`, then ends, raises `error` or waits for ever."""

    def __init__(self, length: int, *, error: Exception | None = None, hangs: bool = False) -> None:
        self._length, self._error, self._hangs = length, error, hangs
        self.is_closed = False

    async def items(self) -> AsyncGenerator[int, None]:
        try:
            for i in range(self._length):
                yield i
                await asyncio.sleep(0)
            if self._error is not None:
                raise self._error
            if self._hangs:
                await asyncio.sleep(3600)
        finally:
            self.is_closed = True


@pytest.mark.parametrize("num_streams", [1, 2, 5])
def test_every_item_comes_once_and_in_its_stream_s_order(num_streams: int) -> None:
    async def run() -> list[tuple[int, int]]:
        return [pair async for pair in interleave([Stream(10 + i).items() for i in range(num_streams)])]

    pairs = asyncio.run(run())
    for index in range(num_streams):
        assert [item for i, item in pairs if i == index] == list(range(10 + index))


def test_no_stream_waits_for_another() -> None:
    async def run() -> set[tuple[int, int]]:
        streams = interleave([Stream(1, hangs=True).items(), Stream(3, hangs=True).items()])
        seen = {await anext(streams) for _ in range(4)}
        await streams.aclose()
        return seen

    assert asyncio.run(run()) == {(0, 0), (1, 0), (1, 1), (1, 2)}


@pytest.mark.parametrize("num_others", [0, 2])
def test_an_error_ends_all_and_reaches_the_reader(num_others: int) -> None:
    async def run() -> None:
        streams = [Stream(2, error=KeyError("x")), *(Stream(1, hangs=True) for _ in range(num_others))]
        with pytest.raises(KeyError):
            async for _ in interleave([stream.items() for stream in streams]):
                pass
        assert all(stream.is_closed for stream in streams)

    asyncio.run(run())


@pytest.mark.parametrize("num_streams", [1, 3])
def test_cancelling_the_reader_closes_every_stream(num_streams: int) -> None:
    async def run() -> None:
        streams = [Stream(1, hangs=True) for _ in range(num_streams)]

        async def read() -> None:
            async for _ in interleave([stream.items() for stream in streams]):
                pass

        reader = asyncio.create_task(read())
        for _ in range(20):
            await asyncio.sleep(0)
        reader.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reader
        assert all(stream.is_closed for stream in streams)

    asyncio.run(run())
