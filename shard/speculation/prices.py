"""How many of a step's drafts are worth their rows, which do not all cost the same.

Pure tensor arithmetic on the drafts' device, with no look at values on the host. Must not know where prices or
probabilities come from.
"""

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from shard.cpu.drafter import PricesStruct
from shard.speculation import DraftPrice


class Prices(Protocol):
    @property
    def least_probability(self) -> float:
        """A draft that is less probable need not be made."""

    def num_taken(self, log_p: Tensor, num_drafts: Tensor) -> Tensor:
        """How many drafts of each tree [S] are taken: over all trees so many of the most probable ones that what they
        bring, less what they cost, is most.

        `log_p` [S, N] falls from draft to draft, of which there are `num_drafts` [S]. With one price there is nothing
        to choose: what is less probable than that is left out.
        """


class HostPrices:
    """Prices that the host knows."""

    def __init__(self, prices: Sequence[DraftPrice] = ()) -> None:
        self._prices = prices
        self.least_probability = min((price.probability for price in prices), default=0.0)

    @property
    def struct(self) -> PricesStruct:
        """For the compiled functions."""
        firsts, probabilities = [p.first for p in self._prices], [p.probability for p in self._prices]
        return PricesStruct.of(firsts, probabilities, self.least_probability)

    def num_taken(self, log_p: Tensor, num_drafts: Tensor) -> Tensor:
        """Of trees without drafts below `least_probability`."""
        if len(self._prices) < 2:
            return num_drafts
        of_place = torch.zeros(log_p.numel(), dtype=log_p.dtype, device=log_p.device)
        ends = [*(price.first for price in self._prices[1:]), log_p.numel()]
        for price, end in zip(self._prices, ends, strict=True):
            of_place[price.first : end] = price.probability
        return _worth_most(log_p, num_drafts, of_place)


class DevicePrices:
    """Prices in a tensor, so that a captured step can be told others. At most `MOST`."""

    MOST = 30

    def __init__(self, packed: Tensor) -> None:
        """float64 as `pack` makes them, on the device."""
        self.packed = packed

    @classmethod
    def pack(cls, prices: Sequence[DraftPrice]) -> list[float]:
        """[2 + 2 * MOST]: how many there are, the logarithm of the least, where each begins, and the prices."""
        missing = cls.MOST - len(prices)
        least = min((price.probability for price in prices), default=0.0)
        return [
            len(prices),
            math.log(least) if least > 0 else -math.inf,
            *(price.first for price in prices),
            *[math.inf] * missing,
            *(price.probability for price in prices),
            *[0.0] * missing,
        ]

    @property
    def least_probability(self) -> float:
        """Drafts are left out afterwards."""
        return 0.0

    def num_taken(self, log_p: Tensor, num_drafts: Tensor) -> Tensor:
        count, least_log_p = self.packed[0], self.packed[1].to(log_p.dtype)
        firsts, prices = self.packed[2 : 2 + self.MOST], self.packed[2 + self.MOST :].to(log_p.dtype)
        is_draft = torch.arange(log_p.shape[1], device=log_p.device) < num_drafts[:, None]
        num_drafts = (is_draft & (log_p >= least_log_p)).sum(1)
        places = torch.arange(log_p.numel(), device=log_p.device, dtype=firsts.dtype)
        of_place = prices[(torch.searchsorted(firsts, places, right=True) - 1).clamp_min(0)]
        return torch.where(count < 2, num_drafts, _worth_most(log_p, num_drafts, of_place))


def _worth_most(log_p: Tensor, num_drafts: Tensor, of_place: Tensor) -> Tensor:
    """With the price of the first, second, … draft of the step, [S * N]."""
    is_draft = torch.arange(log_p.shape[1], device=log_p.device) < num_drafts[:, None]
    # Stable: of drafts of one tree that are equally probable the first comes first.
    ordered, order = torch.where(is_draft, log_p, -math.inf).view(-1).sort(descending=True, stable=True)
    total, place = (ordered.exp() - of_place).cumsum(0).max(0)
    num_taken = torch.where(total > 0, place + 1, 0)
    rank = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
    return ((rank.view_as(log_p) < num_taken) & is_draft).sum(1)
