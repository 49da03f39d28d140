"""What a step brought: read from the device when it is done there, told to the router, summed up in a digest.

Pure. Must not know how any of it was decided.
"""

from hashlib import blake2b
from typing import NamedTuple

from torch import Tensor

from shard.decision import Decision
from shard.plan import DraftCounts, SequenceResult
from shard.speculation import Method
from shard.states import HostSlot


class Outcome(NamedTuple):
    """Of S sequences, or more, what rank 0 decided and how many tokens each has now, num_tokens [S].

    logprobs [S, D] are of the decision's tokens, None if nobody asked; counts [S, 2, methods, K] as from
    Drafter.learn, None if there were no drafts or this is another rank; `proposing` [2] int64 nanoseconds by the
    device's clock, from when to when drafts were made, None if the host measured that.
    """

    decision: Decision
    num_tokens: Tensor
    logprobs: Tensor | None
    counts: Tensor | None
    proposing: Tensor | None = None

    @property
    def proposing_ns(self) -> int:
        """Of an outcome on the host."""
        return 0 if self.proposing is None else int(self.proposing[1] - self.proposing[0])

    def to_host(self) -> "Outcome":
        """The same on the host, once the device has come so far: nothing is waited for."""

        def copied(tensor: Tensor) -> Tensor:
            return tensor.to("cpu", non_blocking=True)

        return Outcome(
            Decision(*map(copied, self.decision)),
            copied(self.num_tokens),
            None if self.logprobs is None else copied(self.logprobs),
            None if self.counts is None else copied(self.counts),
            None if self.proposing is None else copied(self.proposing),
        )


def report(sequences: dict[int, HostSlot], outcome: Outcome) -> list[SequenceResult]:
    """One result per sequence that got tokens; `sequences` by their number in the outcome."""
    decision = outcome.decision
    token_ids, emitted = decision.token_ids.tolist(), decision.num_emitted.tolist()
    accepted, checked = decision.num_accepted.tolist(), decision.num_checked.tolist()
    logprobs = None if outcome.logprobs is None else outcome.logprobs.tolist()
    by_method = None if outcome.counts is None else outcome.counts.tolist()
    return [
        SequenceResult(
            slot=sequence.new.slot,
            token_ids=token_ids[s][: emitted[s]],
            logprobs=logprobs[s][: emitted[s]] if logprobs is not None and sequence.new.logprobs else [],
            drafted=checked[s],
            accepted=accepted[s],
            draft_counts=_draft_counts(*by_method[s]) if by_method is not None and checked[s] else [],
        )
        for s, sequence in sequences.items()
        if emitted[s]
    ]


def update_digest(digest: blake2b, sequences: dict[int, HostSlot], outcome: Outcome) -> None:
    """Covers which tokens every sequence committed and how many it has now."""
    emitted = outcome.decision.num_emitted.tolist()
    tokens = [ids[:e] for ids, e in zip(outcome.decision.token_ids.tolist(), emitted, strict=True)]
    slots = [sequence.new.slot for sequence in sequences.values()]
    digest.update(repr((slots, outcome.num_tokens.tolist(), tokens)).encode())


def _draft_counts(drafted: list[list[int]], accepted: list[list[int]]) -> list[DraftCounts]:
    """Rows are methods in the order of their values."""
    return [
        DraftCounts(method, drafted[method - 1], accepted[method - 1]) for method in Method if any(drafted[method - 1])
    ]
