"""Steps of each kind before the first request, at the greatest size: pages in the weights, fails early, and measures
what a draft's row costs.

Leaves nothing behind: the runner is reset before and after.
"""

import logging
from collections.abc import Iterator
from math import inf

from shard.config import ShardConfig
from shard.model_runner import ModelRunner
from shard.plan import NewSequence, Sampling, SequenceStep, StepPlan
from shard.speculation.drafter import Drafter, SpeculationSizes

log = logging.getLogger(__name__)

# Steps of each kind; the fastest counts, because others may be using the machine.
_ROUNDS = 3


def warm_up(runner: ModelRunner, config: ShardConfig, drafter: Drafter | None) -> None:
    """Runs the steps and tells the drafter what one row adds to a step's time."""
    runner.reset()
    if drafter is not None:
        drafter.row_cost = 0.0
    sizes = drafter.sizes if drafter is not None else SpeculationSizes(0, 0, 0, 0)
    plain_s, verify_s, num_drafts = inf, inf, 0
    for plan in _plans(config, sizes):
        result = runner.execute(plan)
        duration_s = result.duration_ns * 1e-9
        drafted = max((sequence.drafted for sequence in result.sequences), default=0)
        if drafted > num_drafts:
            verify_s, num_drafts = duration_s, drafted
        elif drafted and drafted == num_drafts:
            verify_s = min(verify_s, duration_s)
        elif not plan.sequences[0].chunk_length:
            plain_s = min(plain_s, duration_s)
    runner.reset()
    if drafter is not None and num_drafts:
        drafter.row_cost = max(0.0, (verify_s / plain_s - 1) / num_drafts)
        log.info("a step takes %.1f ms, one with %d drafts %.1f ms", plain_s * 1e3, num_drafts, verify_s * 1e3)


def _plans(config: ShardConfig, sizes: SpeculationSizes) -> Iterator[StepPlan]:
    depth, size = sizes.num_speculative_tokens, sizes.tree_size
    # Room for the tokens that the steps may bring.
    length = min(config.max_batch_prefill_tokens, config.max_total_tokens - (2 * _ROUNDS + 1) * (depth + 1))
    if length < 1:
        return
    new = NewSequence(
        slot=0,
        # A text that repeats, so that there are drafts to verify.
        token_ids=[position % 2 for position in range(length)],
        sampling=Sampling(temperature=0.0, top_k=0, top_p=1.0, min_p=0.0, seed=0),
        max_num_tokens=config.max_total_tokens,
        stop_token_ids=[],
        logprobs=False,
    )
    blocks = range(1, -(-config.max_total_tokens // config.block_size) + 1)
    yield StepPlan(1, [], [new], [_step(list(blocks), chunk_length=length, propose=size, depth=depth)])
    for step_id in range(2, 2 + 2 * _ROUNDS):
        # Both kinds propose, so that what is compared is the checking alone.
        yield StepPlan(step_id, [], [], [_step([], verify=size * (step_id % 2), propose=size, depth=depth)])


def _step(
    new_block_ids: list[int], *, propose: int, depth: int, chunk_length: int = 0, verify: int = 0
) -> SequenceStep:
    return SequenceStep(
        slot=0,
        new_block_ids=new_block_ids,
        chunk_start=0,
        chunk_length=chunk_length,
        verify=verify,
        propose=propose,
        propose_depth=depth,
    )
