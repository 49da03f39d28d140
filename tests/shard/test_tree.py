"""Draft trees against a plain enumeration of all paths, and their verification against a plain walk."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shard.speculation import Candidates, Continuation, Method
from shard.speculation.tree import MarkedTree, best_tree, chain
from shard.speculation.verify import ancestors


def random_candidates(generator: torch.Generator, sequences: int, heads: int, width: int) -> Candidates:
    """Distinct tokens, sorted probabilities that sum to less than one."""
    ids = torch.rand(sequences, heads, 20, generator=generator).argsort(2)[..., :width]
    weights = torch.rand(sequences, heads, width + 1, generator=generator)
    probabilities = (weights / weights.sum(2, keepdim=True))[..., :width].sort(2, descending=True).values
    return Candidates(ids, probabilities)


def enumerate_paths(
    ids: list[list[int]], p: list[list[float]], guess: list[int] | None, believed: list[float]
) -> dict[tuple[int, ...], tuple[float, int]]:
    """Every path with its probability and method, by the rule that best_tree documents."""
    found: dict[tuple[int, ...], tuple[float, int]] = {}

    def grow(path: tuple[int, ...], probability: float, follows: bool) -> None:
        depth = len(path)
        if depth == len(ids):
            return
        options = {token: (q, int(Method.MEDUSA)) for token, q in zip(ids[depth], p[depth], strict=True)}
        if follows and guess is not None:
            by_head = options.get(guess[depth], (0.0, 0))[0]
            mixed = max(believed[depth], by_head)
            rest = (1 - mixed) / (1 - by_head)
            options = {token: (q * rest, m) for token, (q, m) in options.items()}
            method = Method.NGRAM_AND_MEDUSA if guess[depth] in options else Method.NGRAM
            options[guess[depth]] = (mixed, int(method))
        for token, (q, method) in options.items():
            found[*path, token] = (probability * q, method)
            grow((*path, token), probability * q, follows and guess is not None and token == guess[depth])

    grow((), 1.0, True)
    return found


def paths_of(marked: MarkedTree, sequence: int) -> list[tuple[int, ...]]:
    tree = marked.tree
    paths: list[tuple[int, ...]] = [()]
    for i in range(int(tree.num_drafts[sequence])):
        parent = int(tree.parents[sequence, i])
        assert parent <= i, "a parent comes before its children"
        paths.append((*paths[parent], int(tree.token_ids[sequence, i])))
    return paths[1:]


@given(
    seed=st.integers(0, 10_000),
    heads=st.integers(1, 4),
    width=st.integers(1, 4),
    size=st.integers(4, 12),
    has_guess=st.lists(st.booleans(), min_size=1, max_size=3),
    least=st.sampled_from([0.0, 0.05, 0.3]),
)
def test_the_tree_holds_the_most_probable_paths(
    seed: int, heads: int, width: int, size: int, has_guess: list[bool], least: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    sequences = len(has_guess)
    candidates = random_candidates(generator, sequences, heads, width)
    # Half of the guesses agree with a candidate.
    guess = torch.where(
        torch.rand(sequences, heads, generator=generator) < 0.5, candidates.token_ids[:, :, 0], torch.tensor(30)
    )
    believed = torch.rand(sequences, heads, generator=generator) * 0.9 + 0.05
    max_drafts = torch.randint(0, size + 1, (sequences,), generator=generator)
    max_depth = torch.randint(0, heads + 1, (sequences,), generator=generator)
    marked = best_tree(
        candidates,
        Continuation(guess, torch.tensor(has_guess).long() * 3),
        believed,
        size=size,
        max_drafts=max_drafts,
        max_depth=max_depth,
        least_probability=least,
    )
    assert marked.tree.token_ids.shape == marked.tree.parents.shape == marked.methods.shape == (sequences, size)
    for s in range(sequences):
        every = enumerate_paths(
            candidates.token_ids[s].tolist(),
            candidates.probabilities[s].double().tolist(),
            guess[s].tolist() if has_guess[s] else None,
            believed[s].double().tolist(),
        )
        # The small amount by which a child is below its parent is part of the order.
        wanted = [
            path
            for path, (p, _) in sorted(every.items(), key=lambda e: -e[1][0] * 0.999 ** len(e[0]))
            if len(path) <= max_depth[s] and p * 0.999 ** len(path) >= least
        ]
        wanted = wanted[: int(max_drafts[s])]
        got = paths_of(marked, s)
        assert len(set(got)) == len(got)
        near = {p for p in every if abs(every[p][0] * 0.999 ** len(p) - least) < 1e-5}
        assert len(got) == len(wanted) or near
        for ours, theirs in zip(got, wanted, strict=False):
            assert every[ours][0] == pytest.approx(every[theirs][0], rel=1e-3) or near
        for i, path in enumerate(got):
            assert int(marked.methods[s, i]) == every[path][1]
            assert math.exp(marked.log_p[s, i]) == pytest.approx(every[path][0] * 0.999 ** len(path), rel=1e-3)
        assert marked.log_p[s, : len(got)].diff().le(0).all()


def test_any_first_drafts_of_a_tree_are_a_tree_even_where_all_are_equally_likely() -> None:
    candidates = Candidates(torch.arange(3).expand(1, 4, 3), torch.full((1, 4, 3), 1.0))
    marked = best_tree(
        candidates,
        None,
        None,
        size=20,
        max_drafts=torch.tensor([20]),
        max_depth=torch.tensor([4]),
        least_probability=0.0,
    )
    assert len(paths_of(marked, 0)) == 20


def test_one_candidate_a_head_is_a_chain() -> None:
    candidates = Candidates(torch.tensor([[[7], [8], [9]]]), torch.full((1, 3, 1), 0.5))
    marked = best_tree(
        candidates,
        None,
        None,
        size=5,
        max_drafts=torch.tensor([5]),
        max_depth=torch.tensor([3]),
        least_probability=0.0,
    )
    assert paths_of(marked, 0) == [(7,), (7, 8), (7, 8, 9)]


def test_a_lookup_alone_is_a_chain_within_its_bounds() -> None:
    continuation = Continuation(torch.tensor([[4, 5, 6]] * 3), torch.tensor([2, 0, 8]))
    sure = torch.full((3, 3), 0.9)
    marked = chain(continuation, sure, size=4, max_drafts=torch.tensor([2, 2, 9]), least_probability=0.0)
    assert [paths_of(marked, s) for s in range(3)] == [[(4,), (4, 5)], [], [(4,), (4, 5), (4, 5, 6)]]


def test_a_chain_ends_where_its_drafts_are_no_longer_worth_their_rows() -> None:
    continuation = Continuation(torch.tensor([[4, 5, 6]] * 2), torch.tensor([2, 3]))
    sure = torch.tensor([[0.9, 0.5, 0.9], [0.9, 0.9, 0.9]])
    marked = chain(continuation, sure, size=3, max_drafts=torch.tensor([3, 3]), least_probability=0.6)
    assert [paths_of(marked, s) for s in range(2)] == [[(4,)], [(4,), (4, 5), (4, 5, 6)]]


@given(st.lists(st.integers(0, 100), min_size=1, max_size=12))
def test_ancestors_are_the_rows_on_the_way_to_the_root(choices: list[int]) -> None:
    parents = [choice % (i + 1) for i, choice in enumerate(choices)]
    seen = ancestors(torch.tensor([parents]))[0]
    for row in range(len(parents) + 1):
        expected, at = {row}, row
        while at:
            at = parents[at - 1]
            expected.add(at)
        assert set(seen[row].nonzero()[:, 0].tolist()) == expected
