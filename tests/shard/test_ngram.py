import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shard.speculation.ngram import NgramProposer


def _reference(tokens: list[int], num_speculative: int, min_match: int, max_match: int) -> list[int]:
    """Tries each length from the longest, each end from the most recent, and follows the copy as it grows."""
    for length in range(max_match, min_match - 1, -1):
        for end in range(len(tokens) - 1, length - 1, -1):
            if length < len(tokens) and tokens[end - length : end] == tokens[-length:]:
                grown = list(tokens)
                for i in range(num_speculative):
                    grown.append(grown[end + i])
                return grown[len(tokens) :]
    return []


def _propose(proposer: NgramProposer, rows: list[list[int]], budget: list[int], garbage: int = 0) -> list[list[int]]:
    width = max(map(len, rows)) + 3
    padded = [row + [garbage] * (width - len(row)) for row in rows]
    drafts = proposer.propose(torch.tensor(padded), torch.tensor([len(row) for row in rows]), torch.tensor(budget))
    assert drafts.token_ids.shape == (len(rows), proposer.num_speculative_tokens)
    return [row[:n] for row, n in zip(drafts.token_ids.tolist(), drafts.num_drafts.tolist(), strict=True)]


_histories = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=24), min_size=1, max_size=4)


@given(_histories, st.integers(1, 6), st.integers(1, 3), st.integers(0, 4), st.integers(0, 2))
def test_drafts_equal_a_plain_search_whatever_lies_beyond_the_tokens(
    rows: list[list[int]], num_speculative: int, min_match: int, extra: int, garbage: int
) -> None:
    max_match = min_match + extra
    proposer = NgramProposer(num_speculative_tokens=num_speculative, min_match=min_match, max_match=max_match)
    expected = [_reference(row, num_speculative, min_match, max_match) for row in rows]
    assert _propose(proposer, rows, [num_speculative] * len(rows), garbage) == expected


def test_the_longest_match_wins_over_a_more_recent_one() -> None:
    proposer = NgramProposer(num_speculative_tokens=2, min_match=1, max_match=4)
    assert _propose(proposer, [[1, 2, 3, 7, 8, 3, 9, 9, 1, 2, 3]], [2]) == [[7, 8]]


def test_the_most_recent_of_equally_long_matches_wins() -> None:
    proposer = NgramProposer(num_speculative_tokens=2, min_match=2, max_match=2)
    assert _propose(proposer, [[1, 2, 7, 7, 1, 2, 8, 8, 1, 2]], [2]) == [[8, 8]]


def test_a_continuation_that_runs_into_the_end_goes_on_with_its_period() -> None:
    proposer = NgramProposer(num_speculative_tokens=7, min_match=2, max_match=4)
    assert _propose(proposer, [[9, 1, 2, 3, 1, 2, 3, 1, 2]], [7]) == [[3, 1, 2, 3, 1, 2, 3]]


def test_a_budget_bounds_the_drafts_of_its_row_and_none_silences_it() -> None:
    proposer = NgramProposer(num_speculative_tokens=3, min_match=1, max_match=2)
    row = [1, 2, 3, 4, 1]
    assert _propose(proposer, [row] * 4, [0, 1, 3, 99]) == [[], [2], [2, 3, 4], [2, 3, 4]]


def test_a_match_below_the_lower_bound_is_not_used() -> None:
    row = [5, 2, 6, 1, 2]
    assert _propose(NgramProposer(num_speculative_tokens=1, min_match=1), [row], [1]) == [[6]]
    assert _propose(NgramProposer(num_speculative_tokens=1, min_match=2), [row], [1]) == [[]]


@pytest.mark.parametrize("bounds", [(0, 4), (3, 2)])
def test_bounds_that_match_nothing_are_refused(bounds: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="min_match"):
        NgramProposer(num_speculative_tokens=3, min_match=bounds[0], max_match=bounds[1])
    with pytest.raises(ValueError, match="num_speculative_tokens"):
        NgramProposer(num_speculative_tokens=0)
