import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shard.speculation.ngram import NgramLookup


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


def _look_up(lookup: NgramLookup, rows: list[list[int]], garbage: int = 0) -> list[list[int]]:
    width = max(map(len, rows)) + 3
    padded = [row + [garbage] * (width - len(row)) for row in rows]
    found = lookup.look_up(torch.tensor(padded), torch.tensor([len(row) for row in rows]))
    assert found.token_ids.shape == (len(rows), lookup.num_speculative_tokens)
    return [
        row if length else [] for row, length in zip(found.token_ids.tolist(), found.match_length.tolist(), strict=True)
    ]


_histories = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=24), min_size=1, max_size=4)


@given(_histories, st.integers(1, 6), st.integers(1, 3), st.integers(0, 4), st.integers(0, 2))
def test_drafts_equal_a_plain_search_whatever_lies_beyond_the_tokens(
    rows: list[list[int]], num_speculative: int, min_match: int, extra: int, garbage: int
) -> None:
    max_match = min_match + extra
    lookup = NgramLookup(num_speculative_tokens=num_speculative, min_match=min_match, max_match=max_match)
    expected = [_reference(row, num_speculative, min_match, max_match) for row in rows]
    assert _look_up(lookup, rows, garbage) == expected


def test_the_longest_match_wins_over_a_more_recent_one() -> None:
    lookup = NgramLookup(num_speculative_tokens=2, min_match=1, max_match=4)
    assert _look_up(lookup, [[1, 2, 3, 7, 8, 3, 9, 9, 1, 2, 3]]) == [[7, 8]]


def test_the_most_recent_of_equally_long_matches_wins() -> None:
    lookup = NgramLookup(num_speculative_tokens=2, min_match=2, max_match=2)
    assert _look_up(lookup, [[1, 2, 7, 7, 1, 2, 8, 8, 1, 2]]) == [[8, 8]]


def test_a_continuation_that_runs_into_the_end_goes_on_with_its_period() -> None:
    lookup = NgramLookup(num_speculative_tokens=7, min_match=2, max_match=4)
    assert _look_up(lookup, [[9, 1, 2, 3, 1, 2, 3, 1, 2]]) == [[3, 1, 2, 3, 1, 2, 3]]


def test_the_length_of_the_match_is_said_up_to_the_upper_bound() -> None:
    lookup = NgramLookup(num_speculative_tokens=1, min_match=1, max_match=3)
    rows = [[1, 2, 3, 4, 5], [5, 1, 2, 6, 2], [5, 1, 2, 3, 5, 2, 3], [1, 2, 3, 4, 5, 1, 2, 3, 4]]
    found = lookup.look_up(torch.tensor([row + [0] * (9 - len(row)) for row in rows]), torch.tensor([5, 5, 7, 9]))
    assert found.match_length.tolist() == [0, 1, 2, 3]


def test_a_match_below_the_lower_bound_is_not_used() -> None:
    row = [5, 2, 6, 1, 2]
    assert _look_up(NgramLookup(num_speculative_tokens=1, min_match=1), [row]) == [[6]]
    assert _look_up(NgramLookup(num_speculative_tokens=1, min_match=2), [row]) == [[]]


@pytest.mark.parametrize("bounds", [(0, 4), (3, 2)])
def test_bounds_that_match_nothing_are_refused(bounds: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="min_match"):
        NgramLookup(num_speculative_tokens=3, min_match=bounds[0], max_match=bounds[1])
    with pytest.raises(ValueError, match="num_speculative_tokens"):
        NgramLookup(num_speculative_tokens=0)
