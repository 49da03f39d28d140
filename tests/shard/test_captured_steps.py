"""Steps that are captured and replayed bring what others bring. On CPU, where operations that are written down take the
place of a graph (tests/shard/recorded.py), and on a GPU with graphs."""

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shard.captured_steps import CapturedSteps
from shard.config import parse_args
from shard.layout import StepRows
from shard.plan import Sampling, SequenceStep
from shard.rank import build_rank
from shard.speculation import Proposal
from tests.checkpoints import make_checkpoint
from tests.shard.recorded import RecordedCapture, as_on_a_gpu
from tests.shard.test_padded_steps import FILTERED, GREEDY, SAMPLED, VOCAB, Run, heads, make_runner

__all__ = ["heads"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("model"), vocab=VOCAB, dtype=torch.float64)


@pytest.mark.parametrize("with_heads", [False, True])
@pytest.mark.parametrize("samplings", [[GREEDY] * 4, [GREEDY, SAMPLED, FILTERED, GREEDY]])
def test_replayed_steps_bring_the_same(
    samplings: list[Sampling], with_heads: bool, checkpoint: Path, heads: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = [f"--medusa-path={heads}"] if with_heads else []
    proposal = Proposal.HEADS if with_heads else Proposal.LOOKUP
    exact = make_runner(checkpoint, *flags)
    expected = Run(exact, proposal, samplings, exact.launch).results()

    as_on_a_gpu(monkeypatch)
    runner, capture = make_runner(checkpoint, *flags), RecordedCapture()
    runner._captured = CapturedSteps(runner._step, runner.states, max_batch_size=4, max_rows=64, capture=capture)
    run = Run(runner, proposal, samplings, runner.launch)
    assert run.results() == expected
    assert capture.num_captured >= 2
    assert capture.num_replayed > 40
    # By the device's clock, in steps that asked for drafts.
    assert set(run.proposing_ns[10:]) == {0, RecordedCapture.PROPOSING_NS}
    # All is forgotten in place: the tensors that were captured are those of the next session, too.
    runner.reset()
    num_captured = capture.num_captured
    assert Run(runner, proposal, samplings, runner.launch).results() == expected
    assert capture.num_captured == num_captured


def test_the_warm_up_captures_the_most_frequent_shapes_before_it_measures(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_on_a_gpu(monkeypatch)
    paths = (f"--model-path={checkpoint}", "--uds-path=unused", "--run-dir=unused", "--dtype=float64", "--threads=1")
    limits = ("--speculate=2", "--max-total-tokens=96", "--max-batch-size=3", "--max-batch-prefill-tokens=32")
    rank = build_rank(parse_args([*paths, *limits]))
    runner, capture = rank.runner, RecordedCapture()
    runner._captured = CapturedSteps(runner._step, runner.states, max_batch_size=3, max_rows=99, capture=capture)
    durations = [cost.duration_ns for cost in rank.warm_up()]
    num_captured, num_replayed = capture.num_captured, capture.num_replayed
    assert num_captured >= 2 * len(runner.captured_batches) == 6
    rank.warm_up()
    assert durations
    assert capture.num_captured == num_captured
    assert capture.num_replayed > 2 * num_replayed


class _States:
    """What shapes depend on."""

    spare_slot = 99
    device = torch.device("cpu")
    draft_token_ids = torch.zeros(100, 7)


@given(drafts=st.lists(st.integers(0, 7), min_size=1, max_size=40), room=st.integers(0, 100))
def test_a_step_is_filled_up_with_rows_that_do_not_matter(drafts: list[int], room: int) -> None:
    max_rows = 40 + sum(drafts) + room
    steps: Any = CapturedSteps(
        cast(Any, None), cast(Any, _States), max_batch_size=40, max_rows=max_rows, capture=RecordedCapture()
    )
    decodes = [(SequenceStep(slot, [], 0, 0, count, 5, 3), 1 + count) for slot, count in enumerate(drafts)]
    filled = steps._fill_up(StepRows(decodes, 1 + max(drafts), [], []))
    real, spare = filled.decodes[: len(drafts)], filled.decodes[len(drafts) :]
    assert [step for step, _ in real] == [step for step, _ in decodes]
    assert all(count >= least for (_, count), (_, least) in zip(real, decodes, strict=True))
    assert all(step.slot == _States.spare_slot and not step.verify and not step.propose for step, _ in spare)
    assert all(1 <= count <= filled.width for _, count in filled.decodes)
    assert filled.width == (8 if any(drafts) else 1)
    assert filled.num_step_rows <= max_rows
    # Few shapes, each at most so much larger than what it is for.
    assert len(filled.decodes) <= max(1.5 * len(drafts), 1)
    assert filled.num_step_rows <= 2 * (len(filled.decodes) + sum(drafts))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("with_heads", [False, True])
@pytest.mark.parametrize("samplings", [[GREEDY] * 4, [GREEDY, SAMPLED, FILTERED, GREEDY]])
def test_graphs_bring_what_kernels_one_by_one_bring(
    samplings: list[Sampling], with_heads: bool, checkpoint: Path, heads: Path
) -> None:
    flags = [f"--medusa-path={heads}"] if with_heads else []
    proposal = Proposal.HEADS if with_heads else Proposal.LOOKUP
    plain, runner = (make_runner(checkpoint, *flags, dtype="float32") for _ in range(2))
    assert runner._captured is not None
    plain._captured = None
    expected = Run(plain, proposal, samplings, plain.launch, digits=3).results()
    for _ in range(2):
        run = Run(runner, proposal, samplings, runner.launch, digits=3)
        assert run.results() == expected
        assert all(0 < ns < 10**9 for ns in run.proposing_ns[1:3])
        runner.reset()
