"""What flat lists of counts say."""

from router.draft_counts import METHODS, added_up, by_method, cut_off, num_counts, num_with

# Two deep: a lookup of two of which one was right, and heads with three drafts at the first place.
LOOKED_UP = [1, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0]
BOTH = [1, 1, 3, 0, 0, 0, 0, 0, 1, 0, 0, 0]


def test_counts_are_told_apart_by_method_and_depth() -> None:
    assert num_counts(2) == len(LOOKED_UP)
    assert {m: (checked, accepted) for m, checked, accepted in by_method(BOTH)} == {
        "ngram": ([1, 1], [0, 0]),
        "medusa": ([3, 0], [1, 0]),
        "ngram_and_medusa": ([0, 0], [0, 0]),
    }


def test_counts_add_up() -> None:
    total = {m: (checked, accepted) for m, checked, accepted in by_method(added_up([LOOKED_UP, BOTH]))}
    assert total["ngram"] == ([2, 2], [1, 0])
    assert total["medusa"] == ([3, 0], [1, 0])
    assert [num_with(method, [LOOKED_UP, BOTH]) for method in METHODS] == [2, 1, 0]


def test_what_a_stop_string_cut_off_was_not_accepted() -> None:
    both_right = [1, 1, 0, 0, 0, 0, 1, 1, 0, 0, 0, 0]
    assert cut_off(both_right, 1) == LOOKED_UP
    assert cut_off(both_right, 0) == [1, 1] + [0] * 10
    assert cut_off(both_right, 2) == both_right
