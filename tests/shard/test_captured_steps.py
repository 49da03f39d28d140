"""Steps that are captured and replayed bring what others bring. On CPU, where operations that are written down take the
place of a graph (tests/shard/recorded.py), and on a GPU with graphs."""

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shard.captured_steps import CapturedSteps
from shard.layout import StepRows
from shard.model_runner import ModelRunner
from shard.plan import SequenceStep
from tests.shard.planned_runs import CASE_IDS, CASES, Case
from tests.shard.recorded import RecordedCapture, as_on_a_gpu


@pytest.fixture(params=CASES, ids=CASE_IDS)
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Case:
    return Case.make(tmp_path, *request.param)


def test_replayed_steps_bring_the_same(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = case.run(case.rank().runner).results()

    as_on_a_gpu(monkeypatch)
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


def test_the_warm_up_captures_the_most_frequent_shapes_before_it_measures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_on_a_gpu(monkeypatch)
    capture = RecordedCapture()
    monkeypatch.setattr("shard.rank.capture_for", lambda dtype, device: capture)
    rank = Case.make(tmp_path, *CASES[0]).rank()
    durations = [cost.duration_ns for cost in rank.warm_up()]
    num_captured, num_replayed = capture.num_captured, capture.num_replayed
    assert rank.runner.captured_batches == [1, 2, 3, 4]
    # Of each with and without asking.
    assert num_captured >= 8
    rank.warm_up()
    assert durations
    assert capture.num_captured == num_captured
    assert capture.num_replayed > 2 * num_replayed


class _Step:
    """What shapes depend on."""

    class states:
        spare_slot = 40
        device = torch.device("cpu")
        draft_token_ids = torch.zeros(41, 7)

    class cache:
        max_step_rows = 0


@given(
    wanted=st.lists(st.tuples(st.integers(0, 7), st.booleans()), min_size=1, max_size=40),
    room=st.integers(0, 100),
)
def test_a_step_is_filled_up_with_rows_that_do_not_matter(wanted: list[tuple[int, bool]], room: int) -> None:
    drafts = [count for count, _ in wanted]
    _Step.cache.max_step_rows = 40 + sum(drafts) + room
    steps: Any = CapturedSteps(cast(Any, _Step), RecordedCapture())
    decodes = [
        (SequenceStep(slot, [], 0, 0, count, 5 * proposes, 3 * proposes), 1 + count)
        for slot, (count, proposes) in enumerate(wanted)
    ]
    filled = steps._fill_up(StepRows(decodes, 1 + max(drafts), [], []))
    real, spare = filled.decodes[: len(drafts)], filled.decodes[len(drafts) :]
    assert [step for step, _ in real] == [step for step, _ in decodes]
    assert all(count >= least for (_, count), (_, least) in zip(real, decodes, strict=True))
    assert all(step.slot == _Step.states.spare_slot and not step.verify and not step.propose for step, _ in spare)
    assert all(1 <= count <= filled.width for _, count in filled.decodes)
    assert filled.width == (8 if any(drafts) else 1)
    assert filled.num_step_rows <= _Step.cache.max_step_rows
    # Few shapes, each at most so much larger than what it is for.
    assert len(filled.decodes) <= max(1.5 * len(drafts), 1)
    assert filled.num_step_rows <= 2 * (len(filled.decodes) + sum(drafts))
    # Whoever wants drafts: what is written to the device is as long as its shape says.
    batch, num_rows = len(filled.decodes), filled.num_step_rows
    is_even = num_rows == batch * filled.width
    for is_asked in (False, True):
        lengths = [len(numbers) for numbers in steps._numbers(filled, is_asked)]
        shared = [batch, batch, batch * filled.width, num_rows, num_rows]
        assert lengths == [*shared, *[batch * is_asked] * 3, *[batch] * 3, 0 if is_even else num_rows, 0, 0]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_graphs_bring_what_kernels_one_by_one_bring(case: Case) -> None:
    plain, runner = ModelRunner(case.rank("float32").runner.step), case.rank("float32").runner
    assert runner.captured_batches
    expected = case.run(plain, digits=3).results()
    for _ in range(2):
        run = case.run(runner, digits=3)
        assert run.results() == expected
        assert all(0 < ns < 10**9 for ns in run.proposing_ns[1:3])
        runner.reset()
