"""The counters against an oracle: from the tokens alone it is known which drafts were proposed and which were right."""

from pathlib import Path

import pytest

from tests.checkpoints import make_checkpoint
from tests.engines import collect, generation_request, run, service
from tests.shard_processes import ShardProcesses

MIN_MATCH, MAX_MATCH = 1, 8


def look_up(tokens: list[int], budget: int) -> list[int]:
    """Plain prompt lookup: after the longest, then most recent, earlier match of the end."""
    for length in range(min(MAX_MATCH, len(tokens) - 1), MIN_MATCH - 1, -1):
        for end in range(len(tokens) - 1, length - 1, -1):
            if tokens[end - length : end] == tokens[-length:]:
                period = len(tokens) - end
                return [tokens[end + i % period] for i in range(budget)]
    return []


def oracle(prompt: list[int], generated: list[int], k: int) -> tuple[int, list[int], list[int]]:
    """Steps, and drafted and accepted tokens by position, of a sequence that generates exactly this."""
    tokens, limit = [*prompt, generated[0]], len(prompt) + len(generated)
    truth = prompt + generated
    steps, drafted, accepted = 1, [0] * k, [0] * k
    while len(tokens) < limit:
        drafts = look_up(tokens, min(k, limit - len(tokens) - 1))
        right = 0
        while right < len(drafts) and truth[len(tokens) + right] == drafts[right]:
            right += 1
        for position in range(len(drafts)):
            drafted[position] += 1
            accepted[position] += position < right
        tokens = truth[: len(tokens) + right + 1]
        steps += 1
    return steps, drafted, accepted


@pytest.mark.parametrize("k", [1, 3, 5])
def test_counters_say_exactly_what_was_drafted_and_accepted(tmp_path: Path, k: int) -> None:
    checkpoint = make_checkpoint(tmp_path / "model", vocab=24, seed=5)
    prompts = [list(range(5, 20)) * 2, [10, 11, 12] * 5, [7, 8, 9, 7, 8], [3]]

    async def scenario() -> None:
        async with service(tmp_path) as s:
            await s.ready(60)
            all_steps, all_drafted, all_accepted = 0, [0] * k, [0] * k
            for prompt in prompts:
                outputs = await collect(s.engine.generate(generation_request(prompt, new=120, k=k)))
                generated = [token for output in outputs for token in output.token_ids]
                steps, drafted, accepted = oracle(prompt, generated, k)
                last = outputs[-1]
                assert last.num_steps == steps
                assert (last.num_drafted_tokens, last.num_accepted_tokens) == (sum(drafted), sum(accepted))
                all_steps += steps
                for position in range(k):
                    all_drafted[position] += drafted[position]
                    all_accepted[position] += accepted[position]
            for position in range(k):
                labels = {"method": "ngram", "position": str(position + 1)}
                assert s.value("drafthouse_speculation_drafted_tokens_total", **labels) == all_drafted[position]
                assert s.value("drafthouse_speculation_accepted_tokens_total", **labels) == all_accepted[position]
            assert 0 < sum(all_accepted) < sum(all_drafted)

    with ShardProcesses(tmp_path, checkpoint, speculate=k, max_batch_size=4):
        run(scenario, timeout_s=120)
