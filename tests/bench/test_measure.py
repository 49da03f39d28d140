"""Who is asked in which order, and who is left out. The service and the peers are stand-ins that answer at once."""

import asyncio
import itertools
from collections.abc import Iterator

from bench.errors import PeerError
from bench.measure import Measurement, Turn
from bench.prompts import Prompt
from bench.systems import System
from tests.bench.turns import LOOKUP, OFF, ON, PEER, turn

_PROMPTS = [Prompt(str(i), "chat", "") for i in range(3)]


class _Scripted(Measurement):
    """Takes its turns from a table of seconds for 10 tokens; None is a peer that fails."""

    def __init__(self, speeds: dict[System, float | None], slow_turn_s: float = 1e9) -> None:
        self.speeds_of_memory: Iterator[float] = itertools.cycle([1000.0])
        peers = {system: None for system in speeds if not system.is_ours}
        super().__init__(
            None,  # type: ignore[arg-type]
            None,  # type: ignore[arg-type]
            ours=[system for system in speeds if system.is_ours],
            peers=peers,  # type: ignore[arg-type]
            max_new_tokens=10,
            slow_turn_s=slow_turn_s,
            token_ids={prompt.id: [1, 2, 3] for prompt in _PROMPTS},
            read_limit=lambda context: next(self.speeds_of_memory) / context,
        )
        self._speeds = speeds

    async def _our_turn(self, system: System, prompts: list[Prompt], place: int) -> Turn:
        return self._peers_turn(system, prompts, place)

    def _peers_turn(self, system: System, prompts: list[Prompt], place: int) -> Turn:
        seconds = self._speeds[system]
        if seconds is None:
            raise PeerError(system.name, "it fell over")
        return turn(place, system, 10 * len(prompts) / seconds, batch=len(prompts), first_s=seconds / 10)


def test_who_begins_rotates() -> None:
    measurement = _Scripted({OFF: 1.0, ON: 1.0, PEER: 1.0})
    asyncio.run(measurement.one_at_a_time(_PROMPTS, shift=0))
    order = [t.system for t in measurement.turns]
    assert order == [OFF, ON, PEER, ON, PEER, OFF, PEER, OFF, ON]
    assert [t.place for t in measurement.turns] == [1, 1, 1, 2, 2, 2, 3, 3, 3]


def test_the_limit_of_a_turn_is_that_of_its_context() -> None:
    measurement = _Scripted({OFF: 1.0})
    asyncio.run(measurement.together(_PROMPTS, batch=2, shift=0))
    # Three tokens of a prompt and half of ten new ones, twice.
    assert [t.limit for t in measurement.turns] == [1000.0 / 16]


def test_the_limit_is_the_mean_of_what_was_measured_before_and_behind_a_turn() -> None:
    measurement = _Scripted({OFF: 1.0, ON: 1.0})
    measurement.speeds_of_memory = iter([1000.0, 2000.0, 800.0])
    asyncio.run(measurement.one_at_a_time(_PROMPTS[:1], shift=0))
    assert [t.limit for t in measurement.turns] == [1500.0 / 8, 1400.0 / 8]


def test_a_peer_that_fails_is_left_out_and_named() -> None:
    measurement = _Scripted({OFF: 1.0, PEER: None, LOOKUP: 1.0})
    asyncio.run(measurement.warm_up(_PROMPTS))
    asyncio.run(measurement.one_at_a_time(_PROMPTS[:1], shift=0))
    assert [t.system for t in measurement.turns] == [OFF, LOOKUP]
    assert measurement.dropped == {PEER: "it fell over"}


def test_slow_batches_are_not_repeated() -> None:
    measurement = _Scripted({OFF: 9.0, PEER: 9.0}, slow_turn_s=5.0)
    for batch in (1, 8, 8, 32, 1):
        asyncio.run(measurement.together(_PROMPTS, batch=batch, shift=0))
    assert [t.batch for t in measurement.turns if t.system == PEER] == [1, 8, 1]
    assert [t.batch for t in measurement.turns if t.system == OFF] == [1, 8, 8, 32, 1]
    assert measurement.skipped() == {PEER: 8}
