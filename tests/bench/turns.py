"""Turns made up for tests of what is computed from them."""

from bench.measure import Turn
from bench.sample import Arrival, Sample
from bench.systems import System

OFF, ON = System("drafthouse", None, 0), System("drafthouse, speculation", None, 3)
PEER, LOOKUP = System("peer", "peer", 0), System("peer, lookup 3", "peer", 3)


def turn(
    place: int,
    system: System,
    speed: float,
    *,
    batch: int = 1,
    first_s: float = 0.1,
    workload: str = "chat",
    limit: float = 100.0,
) -> Turn:
    """Of ten tokens a sample at `speed` tokens per second of all samples together; the first comes at `first_s`."""
    wall_s = 10 * batch / speed
    step_s = (wall_s - first_s) / 9
    arrivals = tuple(Arrival(first_s + step_s * n, 1) for n in range(10))
    sample = Sample("p", workload, tuple(range(10)), arrivals, 10)
    return Turn(place, system, workload, batch, (sample,) * batch, wall_s, limit)
