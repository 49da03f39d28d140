"""What a step brought, as the router is told it, and the digest by which ranks find that they differ."""

from hashlib import blake2b

import pytest
import torch

from shard.decision import Committed, Decision
from shard.plan import NewSequence, Sampling, SequenceResult
from shard.report import Outcome, report, update_digest
from shard.states import HostSlot

GREEDY = Sampling(temperature=0.0, top_k=0, top_p=1.0, min_p=0.0, seed=0)


def in_slots(*slots: int, logprobs: bool = False) -> dict[int, HostSlot]:
    return {
        s: HostSlot(NewSequence(slot, [5, 6], GREEDY, 40, [], logprobs), num_known_tokens=2)
        for s, slot in enumerate(slots)
    }


def outcome(
    token_ids: list[list[int]],
    num_emitted: list[int],
    num_tokens: list[int],
    *,
    counts: torch.Tensor | None = None,
    logprobs: torch.Tensor | None = None,
) -> Outcome:
    tokens, emitted = torch.tensor(token_ids), torch.tensor(num_emitted)
    checked = torch.tensor([2, 0])
    decision = Decision(tokens, torch.zeros_like(tokens), emitted, emitted - 1, checked, torch.zeros_like(emitted))
    return Outcome(Committed(decision, torch.tensor(num_tokens)), logprobs, counts)


TOKENS, EMITTED, LENGTHS = [[11, 12, 13], [21, 22, 23]], [2, 1], [9, 5]


def digest(sequences: dict[int, HostSlot], brought: Outcome, before: bytes = b"") -> bytes:
    running = blake2b(before, digest_size=8)
    update_digest(running, sequences, brought)
    return running.digest()


@pytest.mark.parametrize(
    "other",
    [
        (in_slots(3, 1), outcome([[11, 14, 13], [21, 22, 23]], EMITTED, LENGTHS)),
        (in_slots(3, 1), outcome([[11, 12, 13], [24, 22, 23]], EMITTED, LENGTHS)),
        (in_slots(3, 1), outcome(TOKENS, [3, 1], LENGTHS)),
        (in_slots(3, 1), outcome(TOKENS, [1, 1], LENGTHS)),
        (in_slots(3, 1), outcome(TOKENS, EMITTED, [10, 5])),
        (in_slots(3, 1), outcome(TOKENS, EMITTED, [9, 6])),
        (in_slots(3, 2), outcome(TOKENS, EMITTED, LENGTHS)),
        (in_slots(1, 3), outcome(TOKENS, EMITTED, LENGTHS)),
    ],
    ids=["token", "first token", "one more", "one less", "length", "other length", "slot", "slots swapped"],
)
def test_ranks_that_differ_in_anything_that_counts_have_different_digests(
    other: tuple[dict[int, HostSlot], Outcome],
) -> None:
    assert digest(*other) != digest(in_slots(3, 1), outcome(TOKENS, EMITTED, LENGTHS))


def test_what_is_behind_the_emitted_tokens_does_not_count() -> None:
    """Ranks may have there what they like."""
    same = outcome([[11, 12, 99], [21, 98, 97]], EMITTED, LENGTHS)
    assert digest(in_slots(3, 1), same) == digest(in_slots(3, 1), outcome(TOKENS, EMITTED, LENGTHS))


def test_a_digest_covers_all_steps_so_far() -> None:
    step = in_slots(3, 1), outcome(TOKENS, EMITTED, LENGTHS)
    assert digest(*step, b"1") != digest(*step, b"2")


def test_a_result_has_what_was_emitted_and_logprobs_and_counts_of_who_has_some() -> None:
    counts = torch.arange(2 * 2 * 3 * 2).reshape(2, 2, 3, 2)
    logprobs = torch.tensor([[-1.0, -2.0, -3.0], [-4.0, -5.0, -6.0]])
    brought = outcome(TOKENS, EMITTED, LENGTHS, counts=counts, logprobs=logprobs)
    sequences = in_slots(3, logprobs=True) | {1: in_slots(1)[0]}
    assert report(sequences, brought) == [
        SequenceResult(3, [11, 12], [-1.0, -2.0], drafted=2, accepted=1, draft_counts=list(range(12))),
        SequenceResult(1, [21], [], drafted=0, accepted=0, draft_counts=[]),
    ]
    # Who has ended gets nothing.
    assert report(in_slots(3, 1), outcome(TOKENS, [0, 1], LENGTHS)) == [SequenceResult(1, [21], [], 0, 0, [])]
