"""One step of each kind before the first request, at the greatest size: pages in the weights, fails early.

Leaves nothing behind: the runner is reset before and after.
"""

from shard.config import ShardConfig
from shard.model_runner import ModelRunner
from shard.plan import NewSequence, Sampling, SequenceStep, StepPlan


def warm_up(runner: ModelRunner, config: ShardConfig) -> None:
    runner.reset()
    for plan in _plans(config):
        runner.execute(plan)
    runner.reset()


def _plans(config: ShardConfig) -> list[StepPlan]:
    # Room for the tokens that the three steps may bring.
    length = min(config.max_batch_prefill_tokens, config.max_total_tokens - 2 * config.speculate - 3)
    if length < 1:
        return []
    blocks = range(1, -(-config.max_total_tokens // config.block_size) + 1)
    new = NewSequence(
        slot=0,
        # A text that repeats, so that there are drafts to verify.
        token_ids=[position % 2 for position in range(length)],
        sampling=Sampling(temperature=0.0, top_k=0, top_p=1.0, min_p=0.0, seed=0),
        max_num_tokens=config.max_total_tokens,
        stop_token_ids=[],
        logprobs=False,
    )
    chunk = SequenceStep(0, list(blocks), chunk_start=0, chunk_length=length, verify=0, propose=config.speculate)
    verify = SequenceStep(0, [], chunk_start=0, chunk_length=0, verify=config.speculate, propose=0)
    decode = SequenceStep(0, [], chunk_start=0, chunk_length=0, verify=0, propose=0)
    return [
        StepPlan(1, [], [new], [chunk]),
        StepPlan(2, [], [], [verify]),
        StepPlan(3, [], [], [decode]),
    ]
