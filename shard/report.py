"""What a step brought: read from the device when it is done there, told to the router, summed up in a digest.

Must not know how any of it was decided.
"""

from hashlib import blake2b
from typing import NamedTuple

from torch import Tensor

from shard.decision import Committed
from shard.host_copy import copied_to_host
from shard.plan import SequenceResult
from shard.states import HostSlot


class Outcome(NamedTuple):
    """Of S sequences, or more, what rank 0 decided and what came of it.

    logprobs [S, D] are of the decision's tokens, None if nobody asked; counts [S, 2, methods, K] as from
    Drafter.learn, None if there were no drafts or this is another rank; `proposing` [2] int64 nanoseconds by the
    device's clock, from when to when drafts were made, None if the host measured that.
    """

    committed: Committed
    logprobs: Tensor | None
    counts: Tensor | None
    proposing: Tensor | None = None

    @property
    def proposing_ns(self) -> int:
        """Of an outcome on the host."""
        return 0 if self.proposing is None else int(self.proposing[1] - self.proposing[0])

    def to_host(self) -> "Outcome":
        """The same on the host, once the device has come so far: nothing is waited for."""
        others = self.logprobs, self.counts, self.proposing
        return Outcome(self.committed.to_host(), *(None if each is None else copied_to_host(each) for each in others))


def report(sequences: dict[int, HostSlot], outcome: Outcome) -> list[SequenceResult]:
    """One result per sequence that got tokens; `sequences` by their number in the outcome."""
    decision = outcome.committed.decision
    token_ids, emitted = decision.token_ids.tolist(), decision.num_emitted.tolist()
    accepted, checked = decision.num_accepted.tolist(), decision.num_checked.tolist()
    logprobs = None if outcome.logprobs is None else outcome.logprobs.tolist()
    counts = None if outcome.counts is None else outcome.counts.flatten(1).tolist()
    return [
        SequenceResult(
            slot=sequence.new.slot,
            token_ids=token_ids[s][: emitted[s]],
            logprobs=logprobs[s][: emitted[s]] if logprobs is not None and sequence.new.logprobs else [],
            drafted=checked[s],
            accepted=accepted[s],
            draft_counts=counts[s] if counts is not None and checked[s] else [],
        )
        for s, sequence in sequences.items()
        if emitted[s]
    ]


def update_digest(digest: blake2b, sequences: dict[int, HostSlot], outcome: Outcome) -> None:
    """Covers which tokens every sequence committed and how many it has now."""
    decision, num_tokens, _ = outcome.committed
    emitted = decision.num_emitted.tolist()
    tokens = [ids[:e] for ids, e in zip(decision.token_ids.tolist(), emitted, strict=True)]
    slots = [sequence.new.slot for sequence in sequences.values()]
    digest.update(repr((slots, num_tokens.tolist(), tokens)).encode())
