"""What a drafter remembers from step to step, as compiled functions and kernels are given it, who change it in place.

Pure data; must not know how it is changed.

Integers are int64, other numbers float32.
"""

from typing import NamedTuple

from torch import Tensor


class Sums(NamedTuple):
    """A ratio of two sums, changed in place, with what it began with and how it forgets (calibration.py)."""

    above: Tensor
    below: Tensor
    prior: Tensor
    kept: float
    weight: float


class OwnSums(NamedTuple):
    """Sums by slot, changed in place, and how they forget."""

    right: Tensor
    said: Tensor
    kept: float
    weight: float


class Proposed(NamedTuple):
    """What is remembered of the last proposals: ids [slots, K] behind matches [slots], said_ids and said [slots, H, W]
    of heads, methods [slots, N] of drafts."""

    ids: Tensor
    matches: Tensor
    said_ids: Tensor
    said: Tensor
    methods: Tensor


class Memory(NamedTuple):
    """All that a drafter remembers, in tensors that stay where they are: its last proposals, and what is believed of
    lookups, of those of each sequence and of heads, none of them more than so much. Matches count from `least_match`
    on; `most_match` 0: nothing is looked up. Who was asked for proposals, 1 or 0 [], is float32 and kept where the host
    looks at no values."""

    proposed: Proposed
    asked_lookup: Tensor
    asked_heads: Tensor
    lookups: Sums
    own: OwnSums
    heads: Sums
    least_match: int
    most_match: int
    surest_lookup: float
    surest_head: float
