"""How many drafts are taken at given prices, against trying every number of them."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from shard.speculation import DraftPrice
from shard.speculation.prices import DevicePrices, HostPrices

SIZE = 6
PROBABILITY = st.sampled_from([0.01, 0.1, 0.25, 0.5, 0.75, 1.0])


@given(
    trees=st.lists(st.lists(PROBABILITY, max_size=SIZE), min_size=1, max_size=5),
    prices=st.lists(st.sampled_from([0.0, 0.05, 0.3, 0.7, 2.0]), min_size=1, max_size=4),
    stretch=st.integers(1, 5),
)
def test_what_is_taken_brings_most(trees: list[list[float]], prices: list[float], stretch: int) -> None:
    trees = [sorted(tree, reverse=True) for tree in trees]
    # What lies behind the drafts may be anything.
    log_p = torch.full((len(trees), SIZE), 0.0)
    for row, tree in zip(log_p, trees, strict=True):
        row[: len(tree)] = torch.tensor(tree).log()
    num_drafts = torch.tensor([len(tree) for tree in trees])
    taken = HostPrices([DraftPrice(i * stretch, price) for i, price in enumerate(prices)]).num_taken(log_p, num_drafts)

    everything = sorted((p for tree in trees for p in tree), reverse=True)

    def profit(count: int) -> float:
        return sum(everything[:count]) - sum(prices[min(n // stretch, len(prices) - 1)] for n in range(count))

    assert (taken <= num_drafts).all()
    assert (taken >= 0).all()
    if len(prices) == 1:
        assert torch.equal(taken, num_drafts)
        return
    most = max(profit(count) for count in range(len(everything) + 1))
    assert abs(profit(int(taken.sum())) - most) < 1e-5
    # They are the most probable ones.
    left = [p for tree, count in zip(trees, taken.tolist(), strict=True) for p in tree[count:]]
    mine = [p for tree, count in zip(trees, taken.tolist(), strict=True) for p in tree[:count]]
    assert not left or not mine or min(mine) >= max(left)


def test_without_prices_every_draft_is_taken() -> None:
    num_drafts = torch.tensor([2, 0])
    assert torch.equal(HostPrices().num_taken(torch.zeros(2, 3), num_drafts), num_drafts)


def test_a_free_stretch_is_filled_and_a_dear_one_is_not_begun() -> None:
    log_p = torch.tensor([[0.3, 0.2, 0.1], [0.25, 0.15, 0.05]]).log()
    prices = [DraftPrice(0, 0.0), DraftPrice(3, 0.3)]
    assert HostPrices(prices).num_taken(log_p, torch.tensor([3, 3])).tolist() == [2, 1]


def test_a_step_up_is_taken_where_what_lies_behind_it_pays_for_it() -> None:
    log_p = torch.full((2, 8), 0.9).log()
    prices = [DraftPrice(0, 1.5), DraftPrice(1, 0.1)]
    assert HostPrices(prices).num_taken(log_p, torch.tensor([8, 8])).tolist() == [8, 8]
    assert HostPrices(prices).num_taken(log_p, torch.tensor([1, 0])).tolist() == [0, 0]


@given(
    probabilities=st.lists(st.lists(st.floats(1e-6, 1), max_size=SIZE), min_size=1, max_size=5),
    prices=st.lists(st.sampled_from([0.0, 0.05, 0.3, 0.7, 2.0]), max_size=4),
    stretch=st.integers(1, 5),
)
def test_prices_in_a_tensor_say_the_same(probabilities: list[list[float]], prices: list[float], stretch: int) -> None:
    log_p = torch.full((len(probabilities), SIZE), 0.0)
    for row, tree in zip(log_p, probabilities, strict=True):
        row[: len(tree)] = torch.tensor(sorted(tree, reverse=True)).log()
    num_drafts = torch.tensor([len(tree) for tree in probabilities])
    said = [DraftPrice(i * stretch, price) for i, price in enumerate(prices)]
    on_host = HostPrices(said)
    on_device = DevicePrices(torch.tensor(DevicePrices.pack(said), dtype=torch.float64))
    # Whoever is told the least probability makes no drafts below it.
    least = torch.tensor(on_host.least_probability).log()
    num_made = ((log_p >= least) & (torch.arange(SIZE) < num_drafts[:, None])).sum(1)
    assert torch.equal(on_device.num_taken(log_p, num_drafts), on_host.num_taken(log_p, num_made))
