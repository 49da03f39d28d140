"""What was seen of one generation, by whoever made it, and the times that follow from it. Pure."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Arrival:
    """`num_tokens` tokens came together. `time_s` counts from the request."""

    time_s: float
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Sample:
    """One answer. `num_steps` are the forward passes that yielded tokens; without speculation one a token."""

    prompt_id: str
    workload: str
    token_ids: tuple[int, ...]
    arrivals: tuple[Arrival, ...]
    num_steps: int

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def total_s(self) -> float:
        return self.arrivals[-1].time_s

    @property
    def time_to_first_token_s(self) -> float:
        return self.arrivals[0].time_s

    @property
    def decode_tokens_per_s(self) -> float:
        """Of what came after the first arrival."""
        num_tokens = self.num_tokens - self.arrivals[0].num_tokens
        return num_tokens / (self.total_s - self.time_to_first_token_s)

    def gaps_s(self) -> list[float]:
        """Between neighbouring arrivals: the time of a step as the client sees it."""
        pairs = zip(self.arrivals, self.arrivals[1:], strict=False)
        return [after.time_s - before.time_s for before, after in pairs]

    def inter_token_s(self) -> list[float]:
        """One per token after the first arrival: those that come together share the wait for them."""
        gaps = zip(self.gaps_s(), self.arrivals[1:], strict=True)
        return [gap / arrival.num_tokens for gap, arrival in gaps for _ in range(arrival.num_tokens)]
