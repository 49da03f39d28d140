"""Steps that are captured and replayed bring what others bring. On CPU, where operations that are written down take the
place of a graph (tests/shard/recorded.py), and on a GPU with graphs."""

from pathlib import Path
from typing import Any, cast
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shard.captured_steps import CapturedSteps
from shard.device_step import StepKind
from shard.distributed import TPGroup
from shard.layout import StepRows
from shard.model_runner import ModelRunner
from shard.plan import NewSequence, SequenceResult, SequenceStep, StepPlan
from shard.speculation import Proposal
from shard.speculation.prices import DevicePrices
from tests.shard.planned_runs import CASE_IDS, CASES, GREEDY, SAMPLED, Case, in_digits
from tests.shard.random_plans import RandomPlans
from tests.shard.recorded import RecordedCapture, as_on_a_gpu
from tests.shard.triton_device import needs_gpu


@pytest.fixture(params=CASES, ids=CASE_IDS)
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Case:
    return Case.make(tmp_path, *request.param)


def test_replayed_steps_bring_the_same(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = case.run(case.rank().runner).results()

    as_on_a_gpu(monkeypatch)
    monkeypatch.setattr("shard.captured_steps.PROMPTS_CAPTURED_AT", 3)
    capture = RecordedCapture()
    runner = ModelRunner(case.rank().runner.step, capture=capture)
    run = case.run(runner)
    assert run.results() == expected
    assert capture.num_captured >= 2
    assert capture.num_replayed > 40
    # By the device's clock, in steps that asked for drafts.
    assert set(run.proposing_ns[10:]) == {0, RecordedCapture.PROPOSING_NS}
    # All is forgotten in place: the tensors that were captured are those of the next session, too.
    runner.reset()
    num_captured = capture.num_captured
    assert case.run(runner).results() == expected
    assert capture.num_captured == num_captured
    # Steps with prompts, of which each run has two, are captured when they have come a few times.
    for more in (2, 0):
        runner.reset()
        num_replayed = capture.num_replayed
        assert case.run(runner).results() == expected
        num_captured += more
        assert capture.num_captured == num_captured
    # Nothing of that run was not replayed.
    assert capture.num_replayed == num_replayed + 59


@pytest.mark.parametrize("seed", range(4))
def test_whatever_is_planned_captured_steps_bring_the_same(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_heads = seed % 2 > 0
    case, num_slots = Case.make(tmp_path, [], with_heads), 6
    plain = case.rank(num_slots=num_slots).runner
    tree_size = min(5, plain.states.draft_token_ids.shape[1])
    as_on_a_gpu(monkeypatch)
    capture = RecordedCapture()
    runner = ModelRunner(case.rank(num_slots=num_slots).runner.step, capture=capture)
    monkeypatch.setattr("shard.captured_steps.PROMPTS_CAPTURED_AT", 2)
    random_plans = RandomPlans(seed, num_slots=num_slots, proposal=case.proposal, tree_size=tree_size)
    for plan in random_plans.plans(80):
        expected = in_digits(plain.launch(plan)(), 9)
        assert sorted_by_slot(in_digits(runner.launch(plan)(), 9)) == sorted_by_slot(expected), plan.step_id
        random_plans.note(expected)
    assert capture.num_replayed > 10


def test_where_memory_has_room_for_few_the_others_run_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    case = Case.make(tmp_path, *CASES[0])
    expected = case.run(case.rank().runner, digits=9).results()
    as_on_a_gpu(monkeypatch)
    capture = RecordedCapture(most=2)
    runner = ModelRunner(case.rank().runner.step, capture=capture)
    for _ in range(4):
        assert case.run(runner, digits=9).results() == expected
        runner.reset()
    assert capture.num_captured == 2
    # Nor is a step filled up that is not replayed.
    filled = mock.Mock(side_effect=CapturedSteps.run)
    monkeypatch.setattr(CapturedSteps, "run", lambda *arguments: filled(*arguments))
    num_replayed = capture.num_replayed
    assert case.run(runner, digits=9).results() == expected
    assert filled.call_count == capture.num_replayed - num_replayed > 0
    assert capture.num_replayed > 4
    # Asking takes long, so it is not asked again.
    assert capture.num_asked_for_room == 3
    assert [record.message for record in caplog.records].count(
        "2 steps are captured and there is no room for more: others run kernel by kernel"
    ) == 1


class _OthersAreFull(TPGroup):
    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        return x + 1


def test_nothing_is_captured_where_another_rank_has_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its collectives would be in a graph on one rank alone."""
    case = Case.make(tmp_path, *CASES[0])
    expected = case.run(case.rank().runner, digits=9).results()
    as_on_a_gpu(monkeypatch)
    capture, step = RecordedCapture(), case.rank().runner.step
    step.group = _OthersAreFull()
    runner = ModelRunner(step, capture=capture)
    for _ in range(3):
        assert case.run(runner, digits=9).results() == expected
        runner.reset()
    assert (capture.num_captured, capture.num_asked_for_room) == (0, 1)


@pytest.mark.parametrize("stop_token_ids", [[], [17], [15, 16, 17, 18], list(range(15, 80))])
def test_what_warm_up_captured_serves_sequences_with_any_usual_number_of_stop_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_token_ids: list[int]
) -> None:
    as_on_a_gpu(monkeypatch)
    capture = RecordedCapture()
    monkeypatch.setattr("shard.rank.capture_for", lambda *_, **__: capture)
    rank = Case.make(tmp_path, *CASES[0]).rank()
    rank.warm_up()
    captured, replayed = capture.num_captured, capture.num_replayed
    rank.runner.reset()
    new = NewSequence(0, [5, 6, 7, 8], GREEDY, 60, stop_token_ids, logprobs=False)
    rank.runner.launch(StepPlan(1, [], [new], [SequenceStep(0, [1, 2, 3, 4, 5], 0, 4, 0, 0, 0)], Proposal.NONE))()
    for step_id in range(2, 8):
        rank.runner.launch(StepPlan(step_id, [], [], [SequenceStep(0, [], 0, 0, 0, 0, 0)], Proposal.NONE))()
    assert capture.num_captured == captured
    assert capture.num_replayed >= replayed + 6


def test_where_as_many_rows_have_logits_as_there_are_they_are_still_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case, num_slots = Case.make(tmp_path, [], with_heads=False), 16
    # Ten rows in nine chunks: filled up to sixteen in as many.
    prompts = [[2, 3], *([4 + i] for i in range(8))]
    new = [
        NewSequence(slot, prompt, (GREEDY, SAMPLED)[slot % 2], 4, [], logprobs=False)
        for slot, prompt in enumerate(prompts)
    ]
    steps = [SequenceStep(slot, [1 + slot], 0, len(prompt), 0, 0, 0) for slot, prompt in enumerate(prompts)]
    plan = StepPlan(1, [], new, steps, Proposal.NONE)
    expected = case.rank(num_slots=num_slots).runner.launch(plan)().sequences
    as_on_a_gpu(monkeypatch)
    runner = ModelRunner(case.rank(num_slots=num_slots).runner.step, capture=RecordedCapture())
    assert runner.launch(plan)().sequences == expected
    assert len({result.token_ids[0] for result in expected}) > 3


def sorted_by_slot(results: list[SequenceResult]) -> list[SequenceResult]:
    return sorted(results, key=lambda result: result.slot)


def test_the_warm_up_captures_the_most_frequent_shapes_before_it_measures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_on_a_gpu(monkeypatch)
    capture = RecordedCapture()
    monkeypatch.setattr("shard.rank.capture_for", lambda *_, **__: capture)
    rank = Case.make(tmp_path, *CASES[0]).rank()
    durations = [cost.duration_ns for cost in rank.warm_up()]
    num_captured, num_replayed = capture.num_captured, capture.num_replayed
    assert rank.runner.captured_batches == [1, 2, 3, 4]
    # Of each with and without asking; and prompts of two sizes.
    assert num_captured >= 10
    rank.warm_up()
    assert durations
    assert capture.num_captured == num_captured
    assert capture.num_replayed > 2 * num_replayed


class _Step:
    """What shapes depend on."""

    class states:
        spare_slot = 40
        device = torch.device("cpu")
        token_ids = torch.zeros(41, 300)
        draft_token_ids = torch.zeros(41, 7)
        stop_token_ids = torch.zeros(41, 1)

    class cache:
        max_step_rows = 0


@given(
    wanted=st.lists(st.tuples(st.integers(0, 7), st.booleans()), max_size=40),
    prompts=st.lists(st.tuples(st.integers(1, 90), st.booleans()), max_size=5),
    room=st.integers(0, 100),
    most_chunk_rows=st.sampled_from([50, 100, 1000]),
)
def test_a_step_is_filled_up_with_rows_that_do_not_matter(
    wanted: list[tuple[int, bool]], prompts: list[tuple[int, bool]], room: int, most_chunk_rows: int
) -> None:
    if not wanted and not prompts:
        return
    drafts = [count for count, _ in wanted]
    _Step.cache.max_step_rows = 40 + sum(drafts) + room
    steps: Any = CapturedSteps(cast(Any, _Step), RecordedCapture(), most_chunk_rows=most_chunk_rows)
    decodes = [
        (SequenceStep(slot, [], 0, 0, count, 5 * proposes, 3 * proposes), 1 + count)
        for slot, (count, proposes) in enumerate(wanted)
    ]
    whole = [SequenceStep(slot, [], 7, length, 0, 0, 0) for slot, (length, _) in enumerate(prompts)]
    chunks = [(chunk, chunk if is_last else None) for chunk, (_, is_last) in zip(whole, prompts, strict=True)]
    rows = StepRows(decodes, 1 + max(drafts, default=0), chunks, max((length for length, _ in prompts), default=0))
    kind = StepKind(Proposal.NONE, any_sampled=False, any_filtered=False, any_logprobs=False)
    filled = steps.fill_up(rows, kind, 0)
    if (num_chunk_rows := sum(length for length, _ in prompts)) > min(most_chunk_rows, 300):
        assert filled is None
        return
    if filled is None:
        # Prompts have no room beside so many drafts.
        assert prompts
        assert max(4, 4 * len(prompts)) + 1.5 * len(drafts) + 1 + sum(drafts) > _Step.cache.max_step_rows
        return
    assert steps.fill_up(rows, kind, DevicePrices.MOST + 1) is None
    real, spare = filled.decodes[: len(drafts)], filled.decodes[len(drafts) :]
    assert [step for step, _ in real] == [step for step, _ in decodes]
    assert all(count >= least for (_, count), (_, least) in zip(real, decodes, strict=True))
    assert all(step.slot == _Step.states.spare_slot and not step.verify and not step.propose for step, _ in spare)
    assert all(1 <= count <= filled.width for _, count in filled.decodes)
    assert filled.width == (8 if any(drafts) else 1)
    assert filled.num_step_rows <= _Step.cache.max_step_rows
    assert filled.most_direct_rows <= most_chunk_rows
    # Few shapes, each at most so much larger than what it is for.
    assert len(filled.decodes) <= (max(1.5 * len(drafts), 1) if drafts else 0)
    assert filled.num_step_rows <= (4 if prompts else 2) * (len(filled.decodes) + sum(drafts))
    _check_chunks(filled, chunks, num_chunk_rows)
    # Whoever wants drafts: what is written to the device is as long as its shape says.
    batch, num_rows = len(filled.decodes), filled.num_step_rows
    is_even = num_rows == batch * filled.width
    num_spans, most = batch + len(filled.chunks), filled.most_direct_rows
    num_logits = num_rows + len(filled.chunks)
    for is_asked in (False, True):
        lengths = [len(numbers) for numbers in steps._numbers(filled, is_asked)]
        shared = [num_spans, num_spans, num_spans * filled.width, num_logits, num_logits]
        existing = 0 if is_even else num_rows
        assert lengths == [*shared, *[num_spans * is_asked] * 3, *[num_spans] * 3, existing, most, most]


def _check_chunks(
    filled: StepRows, chunks: list[tuple[SequenceStep, SequenceStep | None]], num_chunk_rows: int
) -> None:
    """The rows of prompts are as many as the shape says; what is missing of them is the spare slot's."""
    if not chunks:
        assert (filled.chunks, filled.most_direct_rows) == ([], 0)
        return
    real, spare = filled.chunks[: len(chunks)], filled.chunks[len(chunks) :]
    assert [chunk for chunk, _ in real] == [chunk for chunk, _ in chunks]
    for (_, yielding), (_, wanted) in zip(real, chunks, strict=True):
        assert yielding is not None
        assert yielding == wanted if wanted else yielding.slot == _Step.states.spare_slot
    # Rows that are nobody's belong to a spare chunk, else they would be written where a sequence has its own.
    assert spare
    assert all(chunk.slot == _Step.states.spare_slot and yielding == chunk for chunk, yielding in spare)
    assert sum(chunk.chunk_length for chunk, _ in filled.chunks) == filled.most_direct_rows
    assert all(chunk.chunk_length == 0 for chunk, _ in spare[1:])
    assert filled.most_direct_rows <= max(64, 4 * num_chunk_rows)
    assert len(filled.chunks) <= 4 * len(chunks)


@pytest.mark.gpu
@needs_gpu
def test_graphs_bring_what_kernels_one_by_one_bring(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shard.captured_steps.PROMPTS_CAPTURED_AT", 3)
    plain, runner = ModelRunner(case.rank("float32").runner.step), case.rank("float32").runner
    assert runner.captured_batches
    expected = case.run(plain, digits=3).results()
    for _ in range(4):
        run = case.run(runner, digits=3)
        assert run.results() == expected
        assert all(0 < ns < 10**9 for ns in run.proposing_ns[1:3])
        runner.reset()
