"""How far ahead drafts reach, and how many there are, by the flags and the heads there are."""

import pytest
import torch

from shard.config import ConfigError, ShardConfig
from shard.medusa import HeadFigures
from shard.speculation import Method, Proposal
from shard.speculation_setup import build_drafter, proposals_of, speculation_methods, speculation_sizes
from tests.shard.configs import shard_config

CPU = torch.device("cpu")


def config(*flags: str) -> ShardConfig:
    return shard_config("unused", "--max-total-tokens=64", *flags)


@pytest.mark.parametrize(
    ("flags", "num_heads", "depth", "size"),
    [
        ((), 0, 0, 0),
        (("--speculate=3",), 0, 3, 3),
        ((), 4, 4, 16),
        (("--speculate=auto",), 0, 8, 8),
        # Beyond the heads lookup reaches alone.
        (("--speculate=auto",), 4, 8, 16),
        (("--speculate=auto", "--tree-size=5"), 4, 5, 5),
        (("--speculate=auto", "--max-batch-draft-tokens=6"), 0, 6, 6),
        # Where lookup drafts nothing, nothing reaches beyond the heads.
        (("--speculate=auto", "--speculation-method=medusa"), 3, 3, 16),
    ],
)
def test_sizes(flags: tuple[str, ...], num_heads: int, depth: int, size: int) -> None:
    sizes = speculation_sizes(config(*flags), num_heads=num_heads, device=CPU)
    assert (sizes.num_speculative_tokens, sizes.tree_size, sizes.num_heads) == (depth, size, num_heads)


def test_a_tree_that_is_smaller_than_it_is_deep_is_refused() -> None:
    with pytest.raises(ConfigError, match="--tree-size 3 must be at least the 4 tokens"):
        speculation_sizes(config("--tree-size=3"), num_heads=4, device=CPU)
    with pytest.raises(ConfigError, match="--tree-size 4 must be at least the 8 tokens"):
        speculation_sizes(config("--tree-size=4", "--speculate=8"), num_heads=0, device=CPU)


@pytest.mark.parametrize(
    ("flags", "num_heads", "proposals"),
    [
        ((), 0, []),
        (("--speculate=2",), 0, [Proposal.LOOKUP]),
        ((), 2, [Proposal.LOOKUP, Proposal.HEADS]),
        (("--speculation-method=medusa",), 2, [Proposal.HEADS]),
    ],
)
def test_who_can_be_asked(flags: tuple[str, ...], num_heads: int, proposals: list[Proposal]) -> None:
    settings = config(*flags)
    methods = speculation_methods(settings, speculation_sizes(settings, num_heads=num_heads, device=CPU))
    assert proposals_of(methods) == proposals
    assert (Method.NGRAM in methods) == (Proposal.LOOKUP in proposals)


def test_a_drafter_begins_with_what_was_measured_of_the_heads_and_believes_the_rest() -> None:
    settings = config("--speculate=2", "--tree-size=4")
    sizes = speculation_sizes(settings, num_heads=2, device=CPU)
    # More heads and ranks than are in use, one head with fewer, and one that never said anything.
    acceptance = [[0.4] * (sizes.tree_width + 1), [0.3, 0.1], [0.2]]
    probability = [[0.8] * (sizes.tree_width + 1), [0.2, 0.0], [0.9]]
    drafter = build_drafter(
        settings,
        sizes,
        speculation_methods(settings, sizes),
        figures=HeadFigures(acceptance, probability, []),
        num_slots=1,
        device=CPU,
    )
    assert drafter is not None
    said = torch.full((1, 2, sizes.tree_width), 0.5)
    believed = drafter._head_calibration.estimate(said)[0]
    torch.testing.assert_close(believed[0], torch.full((sizes.tree_width,), 0.25))
    torch.testing.assert_close(believed[1], torch.tensor([0.75] + [0.5] * (sizes.tree_width - 1)))
