"""The rows of a step by the compiled function and by torch operations."""

from unittest import mock

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from shard import layout
from shard.host_copy import integers
from shard.layout import StepLayout, lay_out, pack, plan_rows, unpack
from shard.plan import NewSequence, Sampling, SequenceStep
from shard.states import SequenceStates

SLOTS, LENGTH, TREE = 6, 24, 5
CPU = torch.device("cpu")
GREEDY = Sampling(temperature=0.0, top_k=0, top_p=1.0, min_p=0.0, seed=0)


@st.composite
def _steps(draw: st.DrawFn) -> tuple[SequenceStates, list[SequenceStep]]:
    """Sequences in any state, of which some decode and others are at some place of their prompts."""
    states = SequenceStates(num_slots=SLOTS, max_total_tokens=LENGTH, tree_size=TREE, block_size=4, device=CPU)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    slots = draw(st.permutations(range(SLOTS)))[: draw(st.integers(1, SLOTS))]
    decodes, chunks = list[SequenceStep](), list[SequenceStep]()
    for slot in slots:
        prompt = torch.randint(0, 100, (draw(st.integers(1, LENGTH - 1)),), generator=generator).tolist()
        states.begin_step([], [NewSequence(slot, prompt, GREEDY, LENGTH, [], logprobs=False)], [])
        if draw(st.booleans()):
            start = draw(st.integers(0, len(prompt) - 1))
            length = draw(st.integers(1, len(prompt) - start))
            chunks.append(SequenceStep(slot, [], start, length, verify=0, propose=0, propose_depth=0))
            continue
        states.draft_token_ids[slot].random_(100, 200, generator=generator)
        states.draft_parents[slot] = torch.tensor([draw(st.integers(0, i)) for i in range(TREE)])
        states.num_drafts[slot] = draw(st.integers(0, TREE))
        states.finished[slot] = draw(st.integers(0, 4)) == 0
        verify = draw(st.integers(0, TREE))
        decodes.append(SequenceStep(slot, [], 0, 0, verify=verify, propose=0, propose_depth=0))
    return states, decodes + chunks


@given(planned=_steps())
def test_rows_are_laid_out_as_by_the_torch_operations(planned: tuple[SequenceStates, list[SequenceStep]]) -> None:
    states, steps = planned
    rows = plan_rows(steps, states)
    if rows is None:
        return
    numbers = rows.numbers()
    tensors = unpack(integers(pack(numbers), CPU), list(map(len, numbers)))
    assert layout.layout_kernels() is not None
    made = lay_out(rows, tensors, states)
    with mock.patch.object(layout, "layout_kernels", return_value=None):
        expected = lay_out(rows, tensors, states)
    for name in StepLayout.__slots__:
        one, other = getattr(made, name), getattr(expected, name)
        if isinstance(one, Tensor):
            assert torch.equal(one, other), name
        else:
            assert one == other or name == "rows", name
