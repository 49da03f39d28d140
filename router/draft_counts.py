"""What became of drafts, by where they came from and how far ahead they were. Pure data.

Flat lists of numbers, because each step brings one for each sequence and most of what is done with them is adding up:

    [checked, accepted][METHODS][depth from 1]      2 * len(METHODS) * the greatest depth; none if nothing was checked
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

# In the order of the wire's numbers.
METHODS = ("ngram", "medusa", "ngram_and_medusa")

# Integers, or what is left of them.
_Number = TypeVar("_Number", int, float)


def num_counts(most_depth: int) -> int:
    return 2 * len(METHODS) * most_depth


def added_up(lists: Iterable[Sequence[int]]) -> list[int]:
    """Of at least one."""
    return list(map(sum, zip(*lists, strict=True)))


def by_method(counts: Sequence[_Number]) -> Iterator[tuple[str, Sequence[_Number], Sequence[_Number]]]:
    """Each method, and what was checked and accepted of it by depth; of depth 1 at least."""
    half, depth = _sizes(counts)
    for method, start in zip(METHODS, range(0, half, depth), strict=True):
        yield method, counts[start : start + depth], counts[half + start : half + start + depth]


def num_with(method: str, lists: Sequence[Sequence[int]]) -> int:
    """Of how many a draft of that method was checked; of one list at least."""
    _, depth = _sizes(lists[0])
    start = METHODS.index(method) * depth
    end = start + depth
    return sum(any(counts[start:end]) for counts in lists)


def cut_off(counts: Sequence[int], num_tokens: int) -> list[int]:
    """As if of what was accepted the first `num_tokens` had been all."""
    half, depth = _sizes(counts)
    return [count if i < half or i % depth < num_tokens else 0 for i, count in enumerate(counts)]


def _sizes(counts: Sequence[_Number]) -> tuple[int, int]:
    """Of each half, and of a method in it."""
    half = len(counts) // 2
    return half, half // len(METHODS)
