"""The engine over real gRPC against ranks with a known latency."""

import asyncio
from pathlib import Path
from unittest import mock

import pytest

from drafthouse.v1 import shard_pb2
from router.errors import DeadlineExceeded, Overloaded, ShardsDied, Unavailable
from router.scheduler import Scheduler
from router.sequence import FinishReason
from tests.engines import collect, run, service
from tests.engines import generation_request as request
from tests.router.fake_shard import NUM_BLOCKS, FakeGroup, FakeShards
from tests.router.simulated_shards import continuation
from tests.router.tiny_tokenizers import byte_level_tokenizer

LATENCY_S = 0.03


def expected(prompt: list[int], new: int) -> list[int]:
    return continuation(prompt, max_num_tokens=len(prompt) + new, stop=frozenset())


def test_the_next_step_is_sent_before_the_reply_to_the_one_before(tmp_path: Path) -> None:
    group = FakeGroup(latency_s=LATENCY_S)

    async def scenario() -> None:
        async with FakeShards(tmp_path, group), service(tmp_path) as s:
            await s.ready()
            assert await s.tokens(request([1, 2, 3], new=10)) == expected([1, 2, 3], 10)

    run(scenario)
    assert len(group.arrived_s) == 10
    early = [step for step in range(2, 11) if group.arrived_s[step] < group.replied_s[step - 1]]
    assert early == list(range(2, 11)), "a plan waited for the reply to the step before it"
    # Never more than one ahead: a third would plan on what two unknown outcomes left.
    assert all(group.arrived_s[step] > group.replied_s[step - 2] for step in range(3, 11))


def test_who_comes_while_a_prompt_is_processed_is_in_the_next_step(tmp_path: Path) -> None:
    group = FakeGroup(latency_s=0.6)

    async def scenario() -> None:
        async with FakeShards(tmp_path, group), service(tmp_path) as s:
            await s.ready()
            # Shows what a prompt takes.
            await s.tokens(request(list(range(40)), new=1))
            first = asyncio.create_task(s.tokens(request(list(range(40)), new=3)))
            while 2 not in group.arrived_s:
                await asyncio.sleep(0.01)
            assert await s.tokens(request([7, 8, 9], new=1)) == expected([7, 8, 9], 1)
            assert await first == expected(list(range(40)), 3)

    run(scenario)
    assert group.phases[:3] == ["prefill", "prefill", "prefill"]
    assert group.arrived_s[3] < group.replied_s[2], "the plan waited for the reply"


def test_sequences_with_and_without_speculation_share_a_batch(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with FakeShards(tmp_path, FakeGroup(num_ranks=2)), service(tmp_path, num_ranks=2) as s:
            await s.ready()
            prompts = [[i, i + 1, i + 2] for i in range(6)]
            got = await asyncio.gather(*(s.tokens(request(p, new=20, k=i % 4)) for i, p in enumerate(prompts)))
            assert got == [expected(p, 20) for p in prompts]
            assert s.value("drafthouse_generated_tokens_total") == 120
            assert s.value("drafthouse_speculation_steps_total", method="ngram") > 0
            assert s.value("drafthouse_kv_blocks", state="used") == 0

    run(scenario)


def test_streams_go_on_where_they_stopped_when_the_group_came_back(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with service(tmp_path, num_ranks=2) as s:
            first = FakeGroup(incarnation=1, num_ranks=2, latency_s=LATENCY_S)
            async with FakeShards(tmp_path, first):
                await s.ready()
                prompts = [[i, i + 1] for i in range(3)]
                streams = [asyncio.create_task(s.tokens(request(p, new=30, k=2))) for p in prompts]
                while s.value("drafthouse_generated_tokens_total") < 12:
                    await asyncio.sleep(0.01)
            async with FakeShards(tmp_path, FakeGroup(incarnation=2, num_ranks=2)):
                assert await asyncio.gather(*streams) == [expected(p, 30) for p in prompts]
                assert s.value("drafthouse_shard_restarts_total") == 1
                assert s.value("drafthouse_shard_up", rank="1") == 1

    run(scenario)


def test_ranks_that_disagree_end_the_session_in_that_step(tmp_path: Path) -> None:
    group = FakeGroup(num_ranks=2)
    group.disagree_at_step = 3

    async def scenario() -> None:
        async with FakeShards(tmp_path, group), service(tmp_path, num_ranks=2) as s:
            await s.ready()
            stream = asyncio.create_task(s.tokens(request([5, 6], new=8)))
            while not group.aborts:
                await asyncio.sleep(0.01)
            group.disagree_at_step = None
            assert await stream == expected([5, 6], 8)
            assert "different tokens in step 3" in group.aborts[0]

    run(scenario)


def test_a_silent_rank_is_told_to_leave_and_nothing_is_lost(tmp_path: Path) -> None:
    group = FakeGroup()
    group.silent_from_step = 4

    async def scenario() -> None:
        async with FakeShards(tmp_path, group), service(tmp_path, step_timeout_s=1) as s:
            await s.ready()
            stream = asyncio.create_task(s.tokens(request([5, 6], new=8)))
            while not group.aborts:
                await asyncio.sleep(0.01)
            group.silent_from_step = None
            assert await stream == expected([5, 6], 8)
            assert len(group.warmups) >= 2

    run(scenario)


def test_a_rank_that_reads_nothing_is_given_up_like_one_that_says_nothing(tmp_path: Path) -> None:
    """A plan that is larger than what sockets hold is not even written to a process that is frozen."""
    group = FakeGroup()

    async def scenario() -> None:
        async with FakeShards(tmp_path, group), service(tmp_path, step_timeout_s=1) as s:
            await s.ready()
            session, never = s.engine._session, asyncio.Event()
            assert session is not None
            for calls in session._calls.values():
                calls[:] = [mock.Mock(write=lambda _: never.wait())]
            assert await s.tokens(request([5, 6], new=8)) == expected([5, 6], 8)
            assert "no reply to step 1" in group.aborts[0]
            # In another session, or a third if the machine stood still for a second.
            assert len(group.warmups) >= 2

    run(scenario)


@pytest.mark.parametrize(
    ("odd", "error"),
    [
        (shard_pb2.SequenceResults(slots=[3]), "zip() argument 2 is shorter"),
        (shard_pb2.SequenceResults(slots=[3], num_tokens=[0], drafted=[0], accepted=[0]), "a sequence without tokens"),
        (shard_pb2.SequenceResults(token_ids=[3, 4]), "3 token ids where 1 were said to come"),
        (shard_pb2.SequenceResults(logprobs=[-0.5, -0.5]), "2 logprobs where 1 were said to come"),
        (shard_pb2.SequenceResults(draft_counts=[1]), "1 counts of drafts where 0 were said to come"),
    ],
)
def test_a_reply_that_cannot_be_read_ends_the_session_at_once(
    odd: shard_pb2.SequenceResults, error: str, tmp_path: Path
) -> None:
    """Of a shard that is newer than the router; with no other step outstanding no timer would tell."""
    group = FakeGroup()
    group.odd = odd

    async def scenario() -> None:
        async with FakeShards(tmp_path, group), service(tmp_path) as s:
            await s.ready()
            assert await s.tokens(request([5, 6], new=1)) == expected([5, 6], 1)
            assert "a reply of rank 0 cannot be read" in group.aborts[0]
            assert error in group.aborts[0]

    run(scenario)


def test_a_request_that_the_shards_die_of_ends_alone(tmp_path: Path) -> None:
    group = FakeGroup()
    group.dies_of = 13

    async def scenario() -> None:
        async with FakeShards(tmp_path, group), service(tmp_path) as s:
            await s.ready()
            prompts = [[5, 6], [13, 7], [7, 8], [9]]
            streams = [asyncio.create_task(s.tokens(request(p, new=20, k=2))) for p in prompts]
            with pytest.raises(ShardsDied):
                await streams.pop(1)
            assert await asyncio.gather(*streams) == [expected(p, 20) for p in prompts if p[0] != 13]
            assert len(group.warmups) == 4

    run(scenario)


def test_a_full_queue_turns_away_and_serves_on(tmp_path: Path) -> None:
    async def scenario() -> None:
        group = FakeGroup(latency_s=LATENCY_S)
        async with FakeShards(tmp_path, group), service(tmp_path, max_concurrent_requests=2) as s:
            await s.ready()
            two = [asyncio.create_task(s.tokens(request([i], new=5))) for i in (1, 2)]
            await asyncio.sleep(0)
            with pytest.raises(Overloaded) as turned_away:
                await s.tokens(request([3]))
            assert turned_away.value.retry_after_s > 0
            assert await asyncio.gather(*two) == [expected([1], 5), expected([2], 5)]
            assert await s.tokens(request([3])) == expected([3], 8)

    run(scenario)


def test_more_choices_than_there_can_be_requests_are_no_matter_of_patience(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with FakeShards(tmp_path, FakeGroup()), service(tmp_path, max_concurrent_requests=3) as s:
            await s.ready()
            assert s.engine.limits().max_choices == 3

    run(scenario)


def test_what_is_shown_while_the_shards_are_away_is_true(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with service(tmp_path) as s:
            async with FakeShards(tmp_path, FakeGroup(incarnation=1, latency_s=LATENCY_S)):
                await s.ready()
                streams = [asyncio.create_task(s.tokens(request([i], new=30))) for i in range(3)]
                while s.value("drafthouse_sequences", state="running") < 3:
                    await asyncio.sleep(0.01)
            while s.value("drafthouse_sequences", state="running"):
                await asyncio.sleep(0.01)
            assert s.value("drafthouse_sequences", state="waiting") == 3
            assert s.value("drafthouse_kv_blocks", state="used") == 0
            streams.pop().cancel()
            streams.append(asyncio.create_task(s.tokens(request([7], new=5))))
            streams.append(asyncio.create_task(s.tokens(request([8], new=5))))
            while s.value("drafthouse_sequences", state="waiting") != 4:
                await asyncio.sleep(0.01)
            async with FakeShards(tmp_path, FakeGroup(incarnation=2)):
                wanted = [([0], 30), ([1], 30), ([7], 5), ([8], 5)]
                assert await asyncio.gather(*streams) == [expected(*each) for each in wanted]

    run(scenario)


def test_a_client_that_leaves_frees_its_blocks(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with FakeShards(tmp_path, FakeGroup(latency_s=LATENCY_S)), service(tmp_path) as s:
            await s.ready()
            outputs = s.engine.generate(request([1, 2, 3], new=100))
            await anext(outputs)
            await outputs.aclose()
            assert await s.tokens(request([4])) == expected([4], 8)
            free, cached = (s.value("drafthouse_kv_blocks", state=state) for state in ("free", "cached"))
            assert free + cached == NUM_BLOCKS

    run(scenario)


def test_a_deadline_ends_the_stream_with_an_error(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with FakeShards(tmp_path, FakeGroup(latency_s=LATENCY_S)), service(tmp_path) as s:
            await s.ready()
            outputs = s.engine.generate(request([1], new=100, timeout_s=5 * LATENCY_S))
            assert (await anext(outputs)).token_ids
            with pytest.raises(DeadlineExceeded):
                await collect(outputs)
            assert await s.tokens(request([4])) == expected([4], 8)

    run(scenario)


def test_a_stop_string_cuts_tokens_that_came_in_one_step(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with FakeShards(tmp_path, FakeGroup()), service(tmp_path) as s:
            await s.ready()
            whole = expected([7, 8], 30)
            stop = byte_level_tokenizer().decode(whole[10:12])
            outputs = await collect(s.engine.generate(request([7, 8], new=30, k=3, stop_strings=(stop,))))
            tokens = [token for output in outputs for token in output.token_ids]
            assert outputs[-1].finish_reason is FinishReason.STOP
            assert tokens == whole[: len(tokens)]
            assert len(tokens) <= 12
            assert stop not in "".join(o.text for o in outputs)
            assert outputs[-1].num_generated_tokens == len(tokens)

    run(scenario)


def test_drafts_that_a_stop_string_cut_are_not_counted_as_accepted(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with FakeShards(tmp_path, FakeGroup()), service(tmp_path) as s:
            await s.ready()
            num_accepted = num_generated = 0
            for at in range(40):
                text = byte_level_tokenizer().decode(expected([1, 2, 3, at], 30)[:5])
                outputs = await collect(
                    s.engine.generate(request([1, 2, 3, at], new=30, k=3, stop_strings=(text[-1],)))
                )
                last = outputs[-1]
                assert last.num_accepted_tokens <= max(0, last.num_generated_tokens - (last.num_steps > 0))
                num_accepted += last.num_accepted_tokens
                num_generated += last.num_generated_tokens
            assert 0 < num_accepted < num_generated
            assert s.total("drafthouse_speculation_accepted_tokens_total") == num_accepted

    run(scenario)


def test_tokens_behind_a_stop_string_never_enter_the_prefix_cache(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with FakeShards(tmp_path, FakeGroup()), service(tmp_path) as s:
            await s.ready()
            num_cut = 0
            for at in range(6, 26):
                prompt = [at, at + 1]
                whole = expected(prompt, 40)
                stop = byte_level_tokenizer().decode(whole[at : at + 1])
                outputs = await collect(s.engine.generate(request(prompt, new=40, k=3, stop_strings=(stop,))))
                kept = 2 + sum(len(output.token_ids) for output in outputs)
                again = await collect(s.engine.generate(request(prompt + whole, new=1)))
                assert again[-1].num_cached_prompt_tokens <= kept // 4 * 4
                num_cut += outputs[-1].num_accepted_tokens > 0
            assert num_cut

    run(scenario)


def test_nor_do_they_where_the_same_step_reached_the_greatest_length(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with FakeShards(tmp_path, FakeGroup()), service(tmp_path) as s:
            await s.ready()
            for first in range(50):
                prompt = [first, 1]
                whole = expected(prompt, 11)
                # The ninth token ends a reply of eleven at most: with what is kept a block is one token short.
                stop = byte_level_tokenizer().decode(whole[8:9])
                if whole.index(whole[8]) == 8:
                    assert len(await s.tokens(request(prompt, new=11, k=3, stop_strings=(stop,)))) == 9
                    again = await collect(s.engine.generate(request(prompt + whole, new=1)))
                    assert again[-1].num_cached_prompt_tokens <= 8

    run(scenario)


def test_before_the_shards_have_answered_requests_are_turned_away(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with service(tmp_path) as s:
            assert not s.engine.is_ready
            with pytest.raises(Unavailable):
                await s.tokens(request([1]))

    run(scenario)


def test_a_drain_finishes_what_runs_and_refuses_what_comes(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with FakeShards(tmp_path, FakeGroup(latency_s=LATENCY_S)), service(tmp_path) as s:
            await s.ready()
            stream = asyncio.create_task(s.tokens(request([1], new=10)))
            await asyncio.sleep(2 * LATENCY_S)
            drain = asyncio.create_task(s.engine.drain(10.0))
            await asyncio.sleep(0)
            assert not s.engine.is_ready
            with pytest.raises(Unavailable):
                await s.tokens(request([2]))
            assert await stream == expected([1], 10)
            await drain

    run(scenario)


def test_an_engine_that_fails_leaves_nobody_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        async with FakeShards(tmp_path, FakeGroup(latency_s=LATENCY_S)), service(tmp_path) as s:
            await s.ready()
            streams = [asyncio.create_task(s.tokens(request([i], new=100))) for i in range(3)]
            await asyncio.sleep(3 * LATENCY_S)
            monkeypatch.setattr(Scheduler, "update", lambda *_: 1 / 0)
            for stream in streams:
                with pytest.raises(Unavailable, match="the router failed"):
                    await stream
            with pytest.raises(Unavailable):
                await s.tokens(request([1], new=1))
            assert not s.engine.is_ready
            await asyncio.wait([s.loop], timeout=10)

    # Of the engine's task, as the service that is around it ends.
    with pytest.raises(ZeroDivisionError):
        run(scenario)


def test_an_engine_ends_when_it_is_cancelled_as_the_last_stream_ends(tmp_path: Path) -> None:
    """As at a shutdown whose time is over, while it waits for the moment to plan the next step."""

    async def scenario() -> None:
        async with FakeShards(tmp_path, FakeGroup(latency_s=0.5)), service(tmp_path) as s:
            await s.ready()
            # Shows what a prompt takes.
            await s.tokens(request([1] * 40, new=1))
            stream = asyncio.create_task(s.tokens(request([2] * 40, new=20)))
            await asyncio.sleep(0.2)
            await s.engine.drain(0.0)
            s.loop.cancel()
            await asyncio.wait([s.loop], timeout=10)
            assert s.loop.cancelled()
            with pytest.raises(Unavailable):
                await stream

    run(scenario)


def test_a_drain_that_takes_too_long_ends_the_streams_with_an_error(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with FakeShards(tmp_path, FakeGroup(latency_s=LATENCY_S)), service(tmp_path) as s:
            await s.ready()
            stream = asyncio.create_task(s.tokens(request([1], new=100)))
            await asyncio.sleep(2 * LATENCY_S)
            await s.engine.drain(0.05)
            with pytest.raises(Unavailable):
                await stream

    run(scenario)
