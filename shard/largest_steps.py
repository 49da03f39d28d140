"""The steps that take most memory, run before the KV cache is made, so that nothing later runs out of it.

Must not know how memory is counted.
"""

from shard.config import ShardConfig
from shard.made_up import MadeUpSteps
from shard.plan import Sampling
from shard.speculation import Proposal
from shard.speculation.drafter import SpeculationSizes

# Every filter there is, so that whole rows of logits are gathered and sorted.
_FILTERED = Sampling(temperature=1.0, top_k=1000, top_p=0.99, min_p=1e-6, seed=1)


def run_largest(
    steps: MadeUpSteps, config: ShardConfig, sizes: SpeculationSizes, proposals: list[Proposal], *, times: int = 1
) -> None:
    """The longest chunk at the end of the longest prompt; as many rows of prompts as a step can have, beside the most
    drafts of all other sequences; then the most sequences, each behind the longest context, with the most drafts, and
    whoever can be asked for drafts is asked; these `times` each. But for the first all are sampled with filters and
    log-probabilities."""
    longest = config.max_total_tokens - 1
    length = min(config.max_batch_prefill_tokens, longest)
    steps.prefill(context=longest - length, length=length)
    steps.forget()
    prompts = most_prompts(config)
    if others := config.max_batch_size - len(prompts):
        room = 1 + sizes.num_speculative_tokens
        steps.enter(others, context=max(1, longest - room), room=room, sampling=_FILTERED, logprobs=True)
    steps.prefill_beside(most_drafts(config, sizes)[:others], prompts, sampling=_FILTERED, logprobs=True)
    steps.forget()
    # At most so many tokens come of the steps below.
    room = times * (1 + len(proposals)) * (1 + sizes.num_speculative_tokens)
    context = max(1, longest - room)
    steps.enter(config.max_batch_size, context=context, room=room, sampling=_FILTERED, logprobs=True)
    for proposal in (Proposal.NONE, *proposals):
        for _ in range(times):
            steps.decode(most_drafts(config, sizes), proposal)
    steps.forget()


def most_prompts(config: ShardConfig) -> list[int]:
    """Lengths of prompts that fill a step: as few as that takes, so that others have drafts."""
    left, longest = config.max_batch_prefill_tokens, config.max_total_tokens - 1
    lengths: list[int] = []
    while left and len(lengths) < config.max_batch_size:
        lengths.append(min(left, longest))
        left -= lengths[-1]
    return lengths


def most_drafts(config: ShardConfig, sizes: SpeculationSizes) -> list[int]:
    """Of each sequence of the largest batch: as many as fit the step, in trees as large as can be."""
    left = config.max_batch_draft_tokens
    drafts: list[int] = []
    for _ in range(config.max_batch_size):
        drafts.append(min(left, sizes.tree_size))
        left -= drafts[-1]
    return drafts
