"""The rows of a step by the Triton kernel and by torch operations.

Compiled where there is a GPU, interpreted without one, as test_cuda_attention.py.
"""

from pathlib import Path
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from shard import layout
from shard.host_copy import integers
from shard.layout import StepLayout, StepRows, lay_out, pack, unpack
from shard.plan import NewSequence, Sampling, SequenceStep
from shard.states import SequenceStates
from tests.shard.planned_runs import CASE_IDS, CASES, Case
from tests.shard.recorded import as_on_a_gpu
from tests.shard.triton_device import DEVICE, INTERPRETED, needs_gpu

pytestmark = [] if INTERPRETED else [pytest.mark.gpu, needs_gpu]

SLOTS, LENGTH, BLOCK_SIZE, BLOCKS = 5, 23, 4, 40
GREEDY = Sampling(temperature=0.0, top_k=0, top_p=1.0, min_p=0.0, seed=0)


@st.composite
def _steps(draw: st.DrawFn) -> tuple[SequenceStates, StepRows]:
    """Sequences in any state, also at their limits, which decode with any number of rows; the spare slot may come
    several times."""
    tree_size = draw(st.sampled_from([1, 5, 32, 64]))
    states = SequenceStates(
        num_slots=SLOTS, max_total_tokens=LENGTH, tree_size=tree_size, block_size=BLOCK_SIZE, device=DEVICE
    )
    states.is_readable = False
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    states.block_tables.copy_(torch.randint(0, BLOCKS, states.block_tables.shape, generator=generator))
    width = draw(st.sampled_from([1, 1 + tree_size]))
    slots = draw(st.permutations(range(SLOTS)))[: draw(st.integers(1, SLOTS))]
    for slot in slots:
        prompt = torch.randint(0, 100, (draw(st.integers(1, LENGTH)),), generator=generator).tolist()
        # Also beyond the table.
        limit = draw(st.integers(len(prompt), 2 * LENGTH))
        states.begin_step([], [NewSequence(slot, prompt, GREEDY, limit, [], logprobs=False)], [])
        states.draft_token_ids[slot] = torch.randint(100, 200, (tree_size,), generator=generator).to(DEVICE)
        # From a chain to the children of one parent.
        furthest = draw(st.integers(1, tree_size))
        parents = [draw(st.integers(max(0, i - furthest), i)) for i in range(tree_size)]
        states.draft_parents[slot] = torch.tensor(parents, device=DEVICE)
        states.num_drafts[slot] = draw(st.integers(0, tree_size))
        states.finished[slot] = draw(st.integers(0, 4)) == 0
    decodes = [
        (SequenceStep(slot, [], 0, 0, verify=draw(st.integers(0, width - 1)), propose=0, propose_depth=0), count)
        for slot in [*slots, *[states.spare_slot] * draw(st.integers(0, 2))]
        for count in [draw(st.integers(1, width))]
    ]
    return states, StepRows(decodes, width, [], 0)


def _laid_out(states: SequenceStates, rows: StepRows) -> StepLayout:
    numbers = rows.numbers()
    return lay_out(rows, unpack(integers(pack(numbers), DEVICE), list(map(len, numbers))), states)


def _by_kernel(states: SequenceStates, rows: StepRows) -> StepLayout:
    from shard.cuda.layout import lay_out as kernel

    with mock.patch.object(layout, "layout_for", return_value=kernel):
        return _laid_out(states, rows)


def _by_torch(states: SequenceStates, rows: StepRows) -> StepLayout:
    with mock.patch.object(layout, "layout_for", return_value=None):
        return _laid_out(states, rows)


def _assert_same(made: object, expected: object, names: tuple[str, ...]) -> None:
    for name in names:
        one, other = getattr(made, name), getattr(expected, name)
        if isinstance(one, Tensor) and isinstance(other, Tensor):
            assert one.dtype == other.dtype, name
            assert torch.equal(one, other.expand_as(one)), name
        else:
            assert one == other, name


@given(planned=_steps())
@settings(max_examples=60)
def test_rows_are_laid_out_as_by_the_torch_operations(planned: tuple[SequenceStates, StepRows]) -> None:
    states, rows = planned
    made, expected = _by_kernel(states, rows), _by_torch(states, rows)
    assert made.spans is not None
    assert expected.spans is None
    _assert_same(made, expected, tuple(name for name in StepLayout.__slots__ if name not in ("numbers", "spans")))
    spans, expected_spans = made.device_spans(states), expected.device_spans(states)
    # One entry of the ancestors may stand for all.
    _assert_same(spans, expected_spans, type(spans).__slots__)


def test_a_step_with_prompts_is_laid_out_by_the_torch_operations() -> None:
    states = SequenceStates(num_slots=2, max_total_tokens=LENGTH, tree_size=2, block_size=BLOCK_SIZE, device=DEVICE)
    states.is_readable = False
    new = [NewSequence(slot, [5, 6, 7], GREEDY, LENGTH, [], logprobs=False) for slot in range(2)]
    states.begin_step([], new, [])
    decode, chunk = (
        SequenceStep(slot, [], 0, length, verify=0, propose=0, propose_depth=0) for slot, length in ((0, 0), (1, 3))
    )
    made = _by_kernel(states, StepRows([(decode, 1)], 1, [(chunk, chunk)], 3))
    assert made.spans is None
    assert made.token_ids.tolist() == [7, 5, 6, 7]
    assert made.device_spans(states).most_direct_rows == 3


@pytest.mark.skipif(not INTERPRETED, reason="test_captured_steps.py runs whole steps on a GPU")
@pytest.mark.parametrize("case", CASES[:2], ids=CASE_IDS[:2])
def test_steps_that_the_kernel_lays_out_bring_the_same(
    case: tuple[list[Sampling], bool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from shard.cuda.layout import lay_out as kernel

    planned = Case.make(tmp_path, *case)
    expected = planned.run(planned.rank().runner).results()
    as_on_a_gpu(monkeypatch)
    called = mock.Mock(side_effect=kernel)
    monkeypatch.setattr("shard.layout.layout_for", lambda device: called)
    assert planned.run(planned.rank().runner).results() == expected
    assert called.call_count > 40
