"""The scheduler against simulated shards with two steps outstanding."""

from dataclasses import replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from router.budget import BudgetConfig, BudgetController
from router.plan import Phase, StepPlan
from router.proposal import Proposal
from router.scheduler import Scheduler, SchedulerConfig
from router.sequence import SUSPECTED_AFTER, FinishReason, Sequence, SequenceStatus
from router.step_costs import StepCost, StepCosts
from tests.router.simulated_shards import SimulatedShards, continuation

DEPTH = 2
# Chains of five, which cost nothing.
BUDGET = BudgetConfig(max_depth=5, tree_size=5, methods=("ngram",))


def make_budget(config: BudgetConfig = BUDGET) -> BudgetController:
    return BudgetController(config, StepCosts())


def new_shards(num_blocks: int, block_size: int = 4, *, accept: float = 0.6, seed: int = 0) -> SimulatedShards:
    return SimulatedShards(
        num_blocks=num_blocks, block_size=block_size, most_depth=BUDGET.max_depth, accept=accept, seed=seed
    )


def make(**config: int | bool) -> tuple[Scheduler, SimulatedShards]:
    values = {"num_blocks": 32, "block_size": 4, "max_batch_size": 4, "max_batch_tokens": 24, "max_draft_tokens": 20}
    values |= config
    scheduler = Scheduler(SchedulerConfig(**values), make_budget())  # type: ignore[arg-type]
    return scheduler, new_shards(values["num_blocks"], values["block_size"])


def sequence(
    seq_id: int, prompt: list[int], *, new: int = 8, k: int = 0, stop: frozenset[int] = frozenset()
) -> Sequence:
    return Sequence(
        seq_id,
        list(prompt),
        len(prompt),
        len(prompt) + new,
        stop_token_ids=stop,
        num_speculative_tokens=k,
    )


def planned(scheduler: Scheduler) -> StepPlan:
    plan = scheduler.schedule()
    assert plan is not None
    return plan


def take_reply(scheduler: Scheduler, shards: SimulatedShards) -> list[Sequence]:
    """Whose tokens it brought, all of which are kept."""
    progress = scheduler.update(shards.reply())
    for one in progress:
        if one.finish_reason is not None:
            scheduler.finish(one.sequence)
    return [one.sequence for one in progress]


def step(scheduler: Scheduler, shards: SimulatedShards) -> None:
    """Fills the pipeline, then takes one reply."""
    while scheduler.num_outstanding_steps < DEPTH and (plan := scheduler.schedule()):
        shards.send(plan)
    if shards.queue:
        take_reply(scheduler, shards)


def run(scheduler: Scheduler, shards: SimulatedShards, *sequences: Sequence) -> None:
    for one in sequences:
        scheduler.add(one)
    for _ in range(2000):
        if all(one.status is SequenceStatus.FINISHED for one in sequences):
            break
        step(scheduler, shards)
    for one in sequences:
        prompt = one.token_ids[: one.num_prompt_tokens]
        expected = continuation(prompt, max_num_tokens=one.max_num_tokens, stop=one.stop_token_ids)
        assert one.token_ids[one.num_prompt_tokens :] == expected
    scheduler.blocks.check_integrity()


@pytest.mark.parametrize("k", [0, 1, 3, 5])
def test_mixed_lengths_and_speculation_yield_the_tokens_of_each_alone(k: int) -> None:
    run(*make(), *(sequence(i, list(range(i, i + 3 + 5 * i)), new=3 + 4 * i, k=min(k, i)) for i in range(6)))


def test_while_prompts_fill_the_steps_no_drafts_take_their_rows() -> None:
    # Each row takes as long as any other, but a step of one as long as four.
    costs = StepCosts(StepCost(n, n, 0, Proposal.NONE, max(4, n) * 1e-3) for n in (1, 4, 64))
    config = SchedulerConfig(num_blocks=128, block_size=4, max_batch_size=4, max_batch_tokens=24, max_draft_tokens=20)
    scheduler, shards = (
        Scheduler(config, BudgetController(BUDGET, costs)),
        new_shards(128),
    )
    scheduler.add(sequence(0, [1, 2, 3], new=40, k=5))
    step(scheduler, shards)
    scheduler.add(sequence(1, list(range(100)), new=1))
    asked, chunks = [], []
    for _ in range(7):
        plan = planned(scheduler)
        shards.send(plan)
        take_reply(scheduler, shards)
        if decode := [step for step in plan.sequences if not step.chunk_length]:
            asked.append(decode[0].propose > 0)
            chunks.append(sum(step.chunk_length for step in plan.sequences))
    # After the fourth prompts no longer fill a step.
    assert chunks == [23, 23, 23, 23, 8, 0, 0]
    assert not any(asked[:3])
    assert any(asked[3:])


@pytest.mark.parametrize("k", [0, 5])
def test_prompts_get_the_rows_they_would_get_without_drafts(k: int) -> None:
    scheduler, shards = make()
    scheduler.add(sequence(0, [1, 2, 3], new=40, k=k))
    for _ in range(3):
        step(scheduler, shards)
    scheduler.add(sequence(1, list(range(40)), new=1))
    plans = [planned(scheduler), planned(scheduler)]
    assert [sum(s.chunk_length for s in plan.sequences) for plan in plans] == [23, 17]
    assert all(s.verify == k for s in plans[0].sequences if not s.chunk_length)


def test_a_prompt_longer_than_the_budget_is_prefilled_in_chunks_beside_decodes() -> None:
    scheduler, shards = make(max_batch_tokens=8)
    scheduler.add(sequence(0, [1, 2, 3], new=20))
    step(scheduler, shards)
    step(scheduler, shards)
    scheduler.add(sequence(1, list(range(30)), new=2))
    plan = planned(scheduler)
    assert plan.phase is Phase.PREFILL
    assert sorted((s.chunk_length, s.num_rows) for s in plan.sequences) == [(0, 1), (7, 7)]


def test_a_prompt_that_waits_for_blocks_keeps_nobody_from_drafting() -> None:
    """Its rows fill no step until there is room for it."""
    costs = StepCosts(StepCost(n, n, 0, Proposal.NONE, max(4, n) * 1e-3) for n in (1, 4, 64))
    config = SchedulerConfig(num_blocks=20, block_size=4, max_batch_size=4, max_batch_tokens=24, max_draft_tokens=20)

    def drafts(waiting: list[Sequence]) -> list[int]:
        """That a sequence is to check, step by step."""
        scheduler = Scheduler(config, BudgetController(BUDGET, costs))
        shards, checked = new_shards(20), []
        scheduler.add(sequence(0, [1, 2, 3], new=60, k=5))
        step(scheduler, shards)
        for one in waiting:
            scheduler.add(one)
        for _ in range(20):
            plan = planned(scheduler)
            checked.append(sum(s.propose for s in plan.sequences))
            shards.send(plan)
            take_reply(scheduler, shards)
        assert scheduler.num_waiting == len(waiting)
        return checked

    alone = drafts([])
    assert sum(alone) > 20
    # It is tried once before that is known.
    assert drafts([sequence(1, list(range(75)), new=1)])[1:] == alone[1:]


def test_the_last_planned_step_is_not_wasted() -> None:
    scheduler, shards = make()
    one = sequence(0, [1, 2, 3], new=2)
    scheduler.add(one)
    shards.send(planned(scheduler))
    shards.send(planned(scheduler))
    assert scheduler.schedule() is None, "two outstanding steps bring the two tokens that are wanted"


def test_blocks_that_run_out_preempt_the_youngest_and_lose_nothing() -> None:
    scheduler, shards = make(num_blocks=9, enable_prefix_caching=False)
    run(scheduler, shards, *(sequence(i, list(range(i, i + 4)), new=24, k=2) for i in range(3)))
    assert scheduler.num_preemptions > 0


def test_a_later_sequence_hits_the_blocks_of_prompt_and_generated_tokens() -> None:
    scheduler, shards = make()
    first = sequence(0, list(range(10)), new=12)
    run(scheduler, shards, first)
    second = sequence(1, [*first.token_ids, 7], new=4)
    run(scheduler, shards, second)
    # 22 tokens, of which the last has no keys and values: five full blocks.
    assert second.num_cached_prompt_tokens == 20


def test_a_hit_never_covers_the_last_token() -> None:
    scheduler, shards = make()
    prompt = list(range(8))
    run(scheduler, shards, sequence(0, prompt, new=4))
    again = sequence(1, prompt, new=4)
    run(scheduler, shards, again)
    assert again.num_cached_prompt_tokens == 4


def test_without_prefix_caching_nothing_is_registered_or_hit() -> None:
    scheduler, shards = make(enable_prefix_caching=False)
    for seq_id in range(2):
        one = sequence(seq_id, list(range(8)), new=4)
        run(scheduler, shards, one)
        assert (one.num_cached_prompt_tokens, scheduler.blocks.num_cached_blocks) == (0, 0)


def test_a_block_cannot_be_hit_before_the_reply_of_the_step_that_wrote_it() -> None:
    scheduler, shards = make()
    scheduler.add(sequence(0, list(range(9)), new=4))
    shards.send(planned(scheduler))
    scheduler.add(sequence(1, list(range(9)), new=4))
    plan = planned(scheduler)
    assert [s.chunk_start for s in plan.sequences if s.chunk_length] == [0]


@pytest.mark.parametrize(("new", "reason"), [(20, None), (5, FinishReason.LENGTH)])
def test_tokens_cut_by_a_stop_string_cannot_be_hit(new: int, reason: FinishReason | None) -> None:
    scheduler, shards = make()
    one = sequence(0, list(range(8)), new=new)
    scheduler.add(one)
    while one.num_tokens < 12:
        step(scheduler, shards)
    if plan := scheduler.schedule():
        shards.send(plan)
    assert [progress.finish_reason for progress in scheduler.update(shards.reply())] == [reason]
    assert (one.num_tokens, one.num_computed_tokens) == (13, 12)
    scheduler.finish(one, num_tokens=11)
    assert scheduler.blocks.num_cached_blocks == 2, "the third block holds a token that was cut"
    again = sequence(1, [*one.token_ids, 1, 2, 3, 4, 5], new=3)
    run(scheduler, shards, again)
    assert again.num_cached_prompt_tokens == 8


def test_restart_replays_every_unfinished_sequence() -> None:
    scheduler, shards = make()
    ones = [sequence(i, list(range(i, i + 6)), new=12, k=3) for i in range(5)]
    for one in ones:
        scheduler.add(one)
    for _ in range(4):
        step(scheduler, shards)
    assert any(one.num_generated_tokens for one in ones)
    scheduler.restart(scheduler.config, make_budget())
    fresh = new_shards(32)
    for _ in range(100):
        step(scheduler, fresh)
    for one in ones:
        assert one.token_ids[6:] == continuation(one.token_ids[:6], max_num_tokens=18, stop=frozenset())


def lose(scheduler: Scheduler) -> tuple[list[Sequence], SimulatedShards]:
    """The group, with what is planned now; and the next one."""
    return scheduler.restart(scheduler.config, make_budget()), new_shards(32)


@pytest.mark.parametrize("guilty", [0, 2, 4])
def test_a_sequence_that_shards_die_of_is_found_and_the_others_go_on(guilty: int) -> None:
    scheduler, shards = make(max_batch_size=8, max_batch_tokens=12)
    ones = [sequence(i, [i, i + 1, i + 2], new=30, k=3) for i in range(5)]
    for one in ones:
        scheduler.add(one)
    num_lost, found = 0, None
    for _ in range(500):
        plan = scheduler.schedule()
        if plan is None:
            break
        slot = ones[guilty].slot
        # Of its tenth token or later.
        if ones[guilty].num_generated_tokens > 9 and any(step.slot == slot for step in plan.sequences):
            num_lost += 1
            named, shards = lose(scheduler)
            for found in named:
                scheduler.finish(found)
        else:
            shards.send(plan)
            take_reply(scheduler, shards)
    assert found is ones[guilty]
    assert num_lost == 3
    for one in ones:
        if one is not found:
            assert one.token_ids[3:] == continuation(one.token_ids[:3], max_num_tokens=33, stop=frozenset())


def test_who_brought_tokens_since_is_no_suspect() -> None:
    scheduler, shards = make()
    one = sequence(0, [1, 2, 3], new=100)
    scheduler.add(one)
    for num_tokens in (5, 21, 37, 53):
        while one.num_tokens < num_tokens:
            step(scheduler, shards)
        named, shards = lose(scheduler)
        assert (named, one.num_losses, one.is_suspect) == ([], 1, False)


def test_a_suspect_that_gives_its_blocks_back_lets_the_others_go_on() -> None:
    scheduler, shards = make(num_blocks=4, block_size=4)
    old, suspect = sequence(0, [1, 2, 3], new=9), sequence(1, [4, 5, 6], new=12)
    scheduler.add(old)
    step(scheduler, shards)
    for _ in range(SUSPECTED_AFTER):
        suspect.note_loss()
    scheduler.add(suspect)
    while old.status is not SequenceStatus.FINISHED or suspect.status is not SequenceStatus.FINISHED:
        while scheduler.num_outstanding_steps < DEPTH and (plan := scheduler.schedule()):
            shards.send(plan)
        assert shards.queue, "nobody does anything, and no reply will come"
        # All at once, as a loop takes them that was busy.
        while shards.queue:
            take_reply(scheduler, shards)
    assert scheduler.num_preemptions == 1
    for one in (old, suspect):
        prompt = one.token_ids[: one.num_prompt_tokens]
        assert one.token_ids[len(prompt) :] == continuation(prompt, max_num_tokens=one.max_num_tokens, stop=frozenset())


class SchedulerMachine(RuleBasedStateMachine):
    """Random arrivals, cancellations, stop strings, replies, restarts and speculative growth."""

    @initialize(
        num_blocks=st.integers(6, 20),
        block_size=st.sampled_from([1, 2, 4]),
        max_batch_size=st.integers(1, 4),
        caching=st.booleans(),
        tree_size=st.integers(5, 12),
        max_draft_tokens=st.integers(0, 30),
        row_s=st.sampled_from([0.0, 0.001, 0.1, None]),
        accept=st.floats(0, 1),
        seed=st.integers(0, 999),
    )
    def start(
        self,
        num_blocks: int,
        block_size: int,
        max_batch_size: int,
        caching: bool,
        tree_size: int,
        max_draft_tokens: int,
        row_s: float | None,
        accept: float,
        seed: int,
    ) -> None:
        self.config = SchedulerConfig(
            num_blocks=num_blocks,
            block_size=block_size,
            max_batch_size=max_batch_size,
            max_batch_tokens=6 * max_batch_size + 3,
            max_draft_tokens=max_draft_tokens,
            enable_prefix_caching=caching,
        )
        self.tree_size = tree_size
        # What a row costs beside a step of 10 ms; None: nobody knows.
        costs = (
            [] if row_s is None else [StepCost(rows, rows, 0, Proposal.NONE, 0.01 + row_s * rows) for rows in (1, 9)]
        )
        self.costs = StepCosts(costs)
        self.scheduler = Scheduler(self.config, self.new_budget())
        self.accept, self.seed = accept, seed
        self.live: list[Sequence] = []
        self.age: dict[int, int] = {}
        self.next_id = 0
        self.new_shards()

    def new_budget(self) -> BudgetController:
        return BudgetController(replace(BUDGET, tree_size=self.tree_size), self.costs)

    def new_shards(self) -> None:
        config = self.config
        self.shards = new_shards(config.num_blocks, config.block_size, accept=self.accept, seed=self.seed)

    @rule(
        # Few distinct prompts, so that prefixes are shared.
        prompt=st.lists(st.sampled_from([1, 2]), min_size=1, max_size=14),
        new=st.integers(1, 12),
        k=st.integers(0, 5),
        stop=st.sets(st.integers(0, 49), max_size=4),
    )
    def arrive(self, prompt: list[int], new: int, k: int, stop: set[int]) -> None:
        one = sequence(self.next_id, prompt, new=new, k=k, stop=frozenset(stop))
        if self.scheduler.fits(one.max_num_tokens):
            self.next_id += 1
            self.live.append(one)
            self.scheduler.add(one)

    @precondition(lambda self: self.scheduler.num_outstanding_steps < DEPTH)
    @rule()
    def plan(self) -> None:
        plan = self.scheduler.schedule()
        if plan is None:
            assert self.shards.queue or not self.live, "nothing will happen that could change it"
        else:
            taking_part = [one for one in self.live if one.slot in {s.slot for s in plan.sequences}]
            assert len(taking_part) == 1 or not any(one.is_suspect for one in taking_part)
            num_drafts = sum(s.verify for s in plan.sequences)
            assert 0 < plan.num_rows - num_drafts <= self.config.max_batch_tokens
            assert len({s.slot for s in plan.sequences}) == len(plan.sequences)
            assert num_drafts <= self.config.max_draft_tokens
            assert all(s.propose_depth <= s.propose <= self.tree_size for s in plan.sequences)
            self.shards.send(plan)

    @precondition(lambda self: self.shards.queue)
    @rule()
    def reply(self) -> None:
        assert set(take_reply(self.scheduler, self.shards)) <= set(self.live)
        self.collect()

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        one = data.draw(st.sampled_from(self.live))
        self.live.remove(one)
        self.scheduler.finish(one)

    @precondition(lambda self: any(s.num_generated_tokens > 1 for s in self.live))
    @rule(data=st.data())
    def stop_string(self, data: st.DataObject) -> None:
        one = data.draw(st.sampled_from([s for s in self.live if s.num_generated_tokens > 1]))
        self.live.remove(one)
        self.scheduler.finish(one, num_tokens=one.num_tokens - 1)

    @rule()
    def restart(self) -> None:
        for guilty in self.scheduler.restart(self.config, self.new_budget()):
            assert guilty.num_losses > SUSPECTED_AFTER
            self.live.remove(guilty)
            self.scheduler.finish(guilty)
        self.new_shards()

    @precondition(lambda self: any(s.status is SequenceStatus.WAITING for s in self.live))
    @rule(data=st.data())
    def suspect(self, data: st.DataObject) -> None:
        one = data.draw(st.sampled_from([s for s in self.live if s.status is SequenceStatus.WAITING]))
        for _ in range(SUSPECTED_AFTER):
            one.note_loss()

    @rule()
    def drain(self) -> None:
        """Nobody starves: left alone, everything ends."""
        for _ in range(600):
            if not self.live:
                return
            step(self.scheduler, self.shards)
            self.collect()
        raise AssertionError(f"starved: {self.live}")

    def collect(self) -> None:
        for one in [s for s in self.live if s.status is SequenceStatus.FINISHED]:
            self.live.remove(one)
            prompt = one.token_ids[: one.num_prompt_tokens]
            expected = continuation(prompt, max_num_tokens=one.max_num_tokens, stop=one.stop_token_ids)
            assert one.token_ids[one.num_prompt_tokens :] == expected

    @invariant()
    def books_balance(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        blocks = self.scheduler.blocks
        blocks.check_integrity()
        held = {block for one in self.live for block in one.block_table}
        assert held == set(blocks._ref_count), "a block leaked"
        if not self.live:
            assert blocks.num_allocated_blocks == 0


SchedulerMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=60)
TestSchedulerMachine = SchedulerMachine.TestCase
