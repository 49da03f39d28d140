"""How far ahead drafts reach, and how many there are, by the flags and the heads there are."""

import pytest
import torch

from shard.config import ConfigError, ShardConfig
from shard.speculation import Method, Proposal
from shard.speculation_setup import proposals_of, speculation_methods, speculation_sizes
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
