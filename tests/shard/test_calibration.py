"""What is learned from outcomes, and that a drafter passes on what it should."""

from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shard.speculation import Candidates, Continuation, DraftTree, Method, Yielded
from shard.speculation import drafter as drafter_module
from shard.speculation.calibration import HeadCalibration, LookupCalibration
from shard.speculation.drafter import Drafter, SpeculationSizes
from shard.speculation.ngram import NgramLookup
from shard.speculation.prices import HostPrices
from shard.speculation.verify import ancestors
from shard.states import SequenceStates

KNOWN, UNKNOWN = torch.tensor([1]), torch.tensor([0])


def test_a_head_that_is_too_sure_is_believed_less() -> None:
    calibration = HeadCalibration(torch.ones(1, 2))
    generator = torch.Generator().manual_seed(0)
    said = torch.tensor([[[0.8, 0.1]]])
    for _ in range(2000):
        # Right four times in ten with its first guess, never with its second.
        truth = torch.where(torch.rand(1, 1, generator=generator) < 0.4, 5, 9)
        calibration.observe(Candidates(torch.tensor([[[5, 6]]]), said), truth, KNOWN)
    estimate = calibration.estimate(said)[0, 0]
    assert estimate[0] == pytest.approx(0.4, abs=0.05)
    assert estimate[1] < 0.02
    # Where it says half as much, half as much is believed.
    assert calibration.estimate(said / 2)[0, 0, 0] == pytest.approx(0.2, abs=0.03)


def test_what_is_not_known_teaches_nothing() -> None:
    calibration = HeadCalibration(torch.tensor([[0.5]]))
    for _ in range(500):
        calibration.observe(Candidates(torch.tensor([[[5]]]), torch.tensor([[[0.9]]])), torch.tensor([[5]]), UNKNOWN)
    assert float(calibration.estimate(torch.tensor([[[0.9]]]))) == pytest.approx(0.45)


def test_a_head_that_was_given_up_is_tried_again_in_time() -> None:
    calibration = HeadCalibration(torch.ones(1, 1))
    said = torch.tensor([[[0.5]]])
    for _ in range(300):
        calibration.observe(Candidates(torch.tensor([[[5]]]), said), torch.tensor([[6]]), KNOWN)
    given_up = float(calibration.estimate(said))
    assert given_up < 0.02
    for _ in range(20_000):
        calibration.observe(Candidates(torch.tensor([[[5]]]), said), torch.tensor([[5]]), UNKNOWN)
    assert float(calibration.estimate(said)) > 0.45


def test_a_looked_up_token_counts_only_where_those_before_it_were_right() -> None:
    calibration = make_lookup_calibration()
    slot, other = torch.tensor([0]), torch.tensor([1])
    before = calibration.estimate(torch.tensor([3]), other)[0]
    known = torch.tensor([3])
    for _ in range(500):
        # The first is right, the second wrong: of the third nothing is learned.
        calibration.observe(
            Continuation(torch.tensor([[1, 2, 3]]), torch.tensor([3])), slot, torch.tensor([[1, 9, 3]]), known
        )
    after = calibration.estimate(torch.tensor([3]), other)[0]
    assert after[0] > 0.98
    assert after[1] < 0.05
    assert after[2] == pytest.approx(float(before[2]))
    assert torch.equal(
        calibration.estimate(torch.tensor([2]), other), make_lookup_calibration().estimate(torch.tensor([2]), other)
    )


def test_a_sequence_that_copies_is_believed_more_than_the_others_until_another_has_its_slot() -> None:
    calibration = make_lookup_calibration()
    slots, known = torch.tensor([0, 1]), torch.tensor([3, 3])
    for _ in range(60):
        # The first sequence goes on as it did before, the second never does.
        calibration.observe(
            Continuation(torch.tensor([[1, 2, 3]] * 2), torch.tensor([2, 2])),
            slots,
            torch.tensor([[1, 2, 3], [9, 9, 9]]),
            known,
        )
    copies, other, unknown = calibration.estimate(torch.tensor([2, 2, 2]), torch.tensor([0, 1, 2]))[:, 0].tolist()
    assert copies > 0.8 > unknown > 0.3 > other
    calibration.begin(slots)
    again = calibration.estimate(torch.tensor([2, 2, 2]), torch.tensor([0, 1, 2]))[:, 0].tolist()
    assert again == pytest.approx([unknown] * 3)


def make_lookup_calibration() -> LookupCalibration:
    return LookupCalibration(max_match=4, num_speculative_tokens=3, num_slots=3, device=torch.device("cpu"))


def make_drafter(*, lookup: bool = True, heads: int = 3, width: int = 2) -> Drafter:
    sizes = SpeculationSizes(num_speculative_tokens=3, tree_size=6, num_heads=heads, tree_width=width)
    return Drafter(
        sizes,
        lookup=NgramLookup(num_speculative_tokens=3) if lookup else None,
        head_factors=None,
        num_slots=4,
        device=torch.device("cpu"),
    )


def propose(drafter: Drafter, slot: int, text: list[int], candidates: Candidates) -> DraftTree:
    """For a sequence of this text, as many drafts as there may be."""
    sizes = drafter.sizes
    states = SequenceStates(
        num_slots=slot + 1, max_total_tokens=32, tree_size=sizes.tree_size, block_size=16, device=torch.device("cpu")
    )
    states.token_ids[slot, : len(text)] = torch.tensor(text)
    states.num_tokens[slot], states.max_num_tokens[slot] = len(text), 32
    return drafter.propose(
        states,
        candidates,
        HostPrices(),
        slots=torch.tensor([slot]),
        proposing=torch.tensor([0]),
        max_drafts=torch.tensor([sizes.tree_size]),
        max_depth=torch.tensor([sizes.num_speculative_tokens]),
    )


def test_a_draft_that_both_propose_is_one_draft_and_counted_as_such() -> None:
    drafter = make_drafter()
    slots = torch.tensor([2])
    # The text says 3 4 5 after 1 2; the heads agree about 3, then go another way.
    candidates = Candidates(
        torch.tensor([[[3, 8], [9, 8], [9, 8]]]), torch.tensor([[[0.6, 0.2], [0.3, 0.1], [0.2, 0.1]]])
    )
    tree = propose(drafter, slot=2, text=[1, 2, 3, 4, 5, 1, 2], candidates=candidates)
    assert int(tree.num_drafts) == 6
    assert tree.token_ids[0].tolist().count(3) == 1
    right = 1 + tree.token_ids[0].tolist().index(3)
    counts = drafter.learn(
        slots,
        1,
        Yielded(
            token_ids=torch.tensor([[3, 4, 0, 0]]),
            num_emitted=torch.tensor([2]),
            parents=tree.parents,
            on_path=ancestors(tree.parents),
            path=torch.tensor([[0, right, 0, 0]]),
            num_accepted=torch.tensor([1]),
            num_checked=tree.num_drafts,
        ),
    )
    assert counts is not None
    drafted, accepted = counts[0]
    assert int(drafted.sum()) == 6
    assert accepted.tolist()[Method.NGRAM_AND_MEDUSA - 1] == [1, 0, 0]
    assert int(accepted.sum()) == 1
    assert drafted.tolist()[Method.NGRAM - 1][1] == 1


def _random_trees(num_trees: int, num_drafts: int, deepest: int, generator: torch.Generator) -> torch.Tensor:
    """Parents [S, N]; nothing is deeper than that."""
    parents = torch.zeros(num_trees, num_drafts, dtype=torch.int64)
    for s in range(num_trees):
        depths = [0]
        for i in range(num_drafts):
            rows = [row for row, depth in enumerate(depths) if depth < deepest]
            parents[s, i] = rows[int(torch.randint(len(rows), (), generator=generator))]
            depths.append(depths[int(parents[s, i])] + 1)
    return parents


@given(seed=st.integers(0, 1000), num_drafts=st.integers(1, 6), num_trees=st.integers(1, 4))
def test_checked_and_accepted_drafts_are_counted_by_method_and_depth(
    seed: int, num_drafts: int, num_trees: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    drafter, deepest = make_drafter(), 3
    with mock.patch.object(drafter_module, "drafter_library", return_value=None):
        plain = make_drafter()
    drafter._memory.proposed.methods.random_(1, len(Method) + 1, generator=generator)
    plain._memory.proposed.methods.copy_(drafter._memory.proposed.methods)
    slots = torch.randperm(4, generator=generator)[:num_trees]
    parents = _random_trees(num_trees, num_drafts, deepest, generator)
    num_checked = torch.randint(0, num_drafts + 1, (num_trees,), generator=generator)
    path, num_accepted = torch.zeros(num_trees, 1 + deepest, dtype=torch.int64), torch.zeros_like(num_checked)
    expected = torch.zeros(num_trees, 2, len(Method), deepest, dtype=torch.int64)
    for s in range(num_trees):
        ways = [[0]]
        for i in range(num_drafts):
            ways.append([*ways[int(parents[s, i])], i + 1])
        accepted = ways[int(torch.randint(int(num_checked[s]) + 1, (), generator=generator))]
        path[s, : len(accepted)] = torch.tensor(accepted)
        num_accepted[s] = len(accepted) - 1
        for row in range(1, int(num_checked[s]) + 1):
            method = int(drafter._memory.proposed.methods[slots[s], row - 1])
            expected[s, 0, method - 1, len(ways[row]) - 2] += 1
            expected[s, 1, method - 1, len(ways[row]) - 2] += row in accepted
    yielded = Yielded(
        token_ids=torch.zeros_like(path),
        num_emitted=num_accepted + 1,
        parents=parents,
        on_path=ancestors(parents),
        path=path,
        num_accepted=num_accepted,
        num_checked=num_checked,
    )
    for one in (drafter, plain):
        counts = one.learn(slots, num_trees, yielded)
        assert counts is not None
        assert torch.equal(counts, expected)


def draft_five(drafter: Drafter, slot: int) -> None:
    propose(drafter, slot, [1, 2], Candidates(torch.tensor([[[5]]]), torch.tensor([[[0.5]]])))


def see_six(drafter: Drafter, slot: int) -> None:
    one, none = torch.ones(1, dtype=torch.int64), torch.zeros(1, 0, dtype=torch.int64)
    yielded = Yielded(
        token_ids=torch.tensor([[6]]),
        num_emitted=one,
        parents=none,
        on_path=None,
        path=torch.tensor([[0]]),
        num_accepted=one - 1,
        num_checked=one - 1,
    )
    drafter.learn(torch.tensor([slot]), 1, yielded)


def test_only_what_was_proposed_in_the_step_before_teaches() -> None:
    drafter = make_drafter(lookup=False, heads=1, width=1)
    estimate = float(drafter._head_calibration.estimate(torch.tensor([[[0.5]]])))
    for _ in range(300):
        draft_five(drafter, slot=1)
        draft_five(drafter, slot=2)
        # The guess for slot 1 is two proposals old: it was of another place.
        see_six(drafter, slot=1)
        assert not drafter.has_pending
    assert float(drafter._head_calibration.estimate(torch.tensor([[[0.5]]]))) == pytest.approx(estimate)
    draft_five(drafter, slot=1)
    assert drafter.has_pending
    see_six(drafter, slot=1)
    assert float(drafter._head_calibration.estimate(torch.tensor([[[0.5]]]))) < estimate
