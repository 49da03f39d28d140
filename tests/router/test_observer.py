"""What is counted of steps and streams, through the engine as tests/router/test_engine.py has it."""

import asyncio
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.engines import generation_request as request
from tests.engines import run, service
from tests.router.fake_shard import FakeGroup, FakeShards

STEP_S = 0.02
TOKENS = 24


@pytest.mark.parametrize("k", [0, 3])
@pytest.mark.parametrize("num_streams", [1, 3])
def test_latencies_are_counted_once_for_each_token_and_each_stream(k: int, num_streams: int, tmp_path: Path) -> None:
    group, phases = FakeGroup(latency_s=STEP_S), ("prefill", "decode", "verify")

    async def scenario() -> None:
        async with FakeShards(tmp_path, group), service(tmp_path) as s:
            await s.ready()
            began_s, streams = time.monotonic(), []
            for number in range(num_streams):
                # Each is admitted beside those before it.
                streams.append(asyncio.create_task(s.tokens(request([1, 2, number], new=TOKENS, k=k))))
                await asyncio.sleep(2 * STEP_S)
            await asyncio.gather(*streams)
            elapsed_s = time.monotonic() - began_s
            # A step that was sent before the last tokens came has nobody to bring anything to.
            while sum(s.total("drafthouse_step_duration_seconds_count", phase=p) for p in phases) < len(group.phases):
                await asyncio.sleep(0.01)

            assert s.value("drafthouse_queue_time_seconds_count") == num_streams
            assert s.value("drafthouse_time_to_first_token_seconds_count") == num_streams
            assert s.value("drafthouse_prompt_tokens_total") == 3 * num_streams
            assert s.value("drafthouse_generated_tokens_total") == TOKENS * num_streams
            # Of each token but a stream's first; the tokens of one step share its time.
            assert s.value("drafthouse_inter_token_latency_seconds_count") == (TOKENS - 1) * num_streams
            between_s = s.value("drafthouse_inter_token_latency_seconds_sum")
            first_s = s.value("drafthouse_time_to_first_token_seconds_sum")
            assert STEP_S * num_streams <= first_s - s.value("drafthouse_queue_time_seconds_sum")
            assert STEP_S * (TOKENS - 1) / (1 + k) * num_streams / 2 < between_s
            assert between_s + first_s <= elapsed_s * num_streams
            for phase, number in Counter(group.phases).items():
                assert s.value("drafthouse_step_duration_seconds_count", phase=phase) == number
                spent_s = s.value("drafthouse_step_duration_seconds_sum", phase=phase)
                assert spent_s == pytest.approx(number * STEP_S)

    run(scenario)
    assert {"prefill", "verify" if k else "decode"} <= set(group.phases)
