"""What a measurement of the whole service says. Pure."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ServiceSpeed:
    """Tokens per second of all requests together, medians of the runs; `ratio` is what on over off of the pairs of runs
    amount to, drafts are those checked per step of a request."""

    model: str
    workload: str
    at_once: int
    off: float
    on: float
    ratio: float
    drafts_per_step: float
