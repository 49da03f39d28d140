"""Which proposers are live and how large draft trees are, from the flags and the heads there are."""

import torch
from torch import Tensor

from shard.config import ConfigError, ShardConfig
from shard.medusa import HeadFigures
from shard.speculation import Method, Proposal
from shard.speculation.drafter import Drafter, SpeculationSizes
from shard.speculation.ngram import NgramLookup

# Bounds of a tree where nothing is said; below them the measured cost of a row chooses (docs/speculation.md).
_CPU_TREE_SIZE = 16
_CUDA_TREE_SIZE = 32
# How far ahead drafts reach where the controller is to choose; the price of rows keeps most of them shorter.
_AUTO_DEPTH = 8
# Tokens taken of each head. The ninth best of the default model's heads is right in 1.4 to 1.9 % of steps.
_TREE_WIDTH = 8


def speculation_sizes(config: ShardConfig, *, num_heads: int, device: torch.device) -> SpeculationSizes:
    """Sizes of a server with so many heads in use. ConfigError where flags contradict each other."""
    if config.speculate == "auto":
        # Heads that reach further are in use anyway, and nothing else drafts where they are alone.
        most = num_heads if config.speculation_method == "medusa" else _AUTO_DEPTH
        depth = max(num_heads, min(most, config.tree_size or most, config.max_batch_draft_tokens))
    else:
        depth = num_heads if config.speculate is None else config.speculate
    default = _CUDA_TREE_SIZE if device.type == "cuda" else _CPU_TREE_SIZE
    size = config.tree_size or max(depth, min(default, config.max_batch_draft_tokens))
    if not num_heads and size >= depth:
        # A lookup gives one guess for each place.
        return SpeculationSizes(depth, tree_size=depth, num_heads=0, tree_width=1)
    if not depth <= size <= config.max_batch_draft_tokens:
        raise ConfigError(
            f"--tree-size {size} must be at least the {depth} tokens that drafts reach ahead and at most "
            f"--max-batch-draft-tokens {config.max_batch_draft_tokens}"
        )
    return SpeculationSizes(depth, tree_size=size, num_heads=num_heads, tree_width=config.tree_width or _TREE_WIDTH)


def speculation_methods(config: ShardConfig, sizes: SpeculationSizes) -> list[Method]:
    """What a draft of this server may come from, in the order of the wire's values."""
    if not sizes.num_speculative_tokens:
        return []
    if not sizes.num_heads:
        return [Method.NGRAM]
    return [Method.MEDUSA] if config.speculation_method == "medusa" else list(Method)


def proposals_of(methods: list[Method]) -> list[Proposal]:
    """Who can be asked for drafts."""
    with_lookup = [Proposal.LOOKUP] if Method.NGRAM in methods else []
    return with_lookup + ([Proposal.HEADS] if Method.MEDUSA in methods else [])


def build_drafter(
    config: ShardConfig,
    sizes: SpeculationSizes,
    methods: list[Method],
    *,
    figures: HeadFigures | None,
    num_slots: int,
    device: torch.device,
) -> Drafter | None:
    """None if there is nothing to draft."""
    if not methods:
        return None
    return Drafter(
        sizes,
        lookup=NgramLookup(num_speculative_tokens=sizes.num_speculative_tokens) if Method.NGRAM in methods else None,
        head_factors=_factors(figures, sizes) if figures else None,
        num_slots=num_slots,
        device=device,
    )


def _factors(figures: HeadFigures, sizes: SpeculationSizes) -> Tensor:
    """How much surer than its softmax each head was at each rank when it was trained; 1 where that is not known."""
    factors = torch.ones(sizes.num_heads, sizes.tree_width)
    for head, (right, said) in enumerate(zip(figures.acceptance, figures.probability, strict=True)):
        for rank, (a, p) in enumerate(zip(right, said, strict=True)):
            if head < sizes.num_heads and rank < sizes.tree_width and p > 0:
                factors[head, rank] = a / p
    return factors
