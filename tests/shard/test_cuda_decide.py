"""Decisions by the Triton kernel, against the torch operations that it stands for.

Compiled where there is a GPU, interpreted without one, as test_cuda_attention.py.
"""

from itertools import accumulate

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from shard import decision
from shard.decision import Committed, decide
from shard.layout import RowNumbers, StepLayout
from shard.speculation.verify import ancestors
from shard.states import SequenceStates
from tests.shard.triton_device import DEVICE, INTERPRETED, needs_gpu

pytestmark = [] if INTERPRETED else [pytest.mark.gpu, needs_gpu]

SLOTS, LENGTH, TOKENS = 6, 60, 3
KEPT = ("token_ids", "num_tokens", "num_drafts", "finished")


def _states(seed: int, num_stops: int) -> SequenceStates:
    """Of few different tokens; every sequence has at least so much room that a draft can be right."""
    made = SequenceStates(num_slots=SLOTS, max_total_tokens=LENGTH, tree_size=3, block_size=16, device=DEVICE)
    generator = torch.Generator().manual_seed(seed)

    def draw(least: int, end: int, *shape: int) -> Tensor:
        return torch.randint(least, end, shape, generator=generator).to(DEVICE)

    made.token_ids[:SLOTS] = draw(0, TOKENS, SLOTS, LENGTH)
    made.num_tokens[:SLOTS] = draw(1, LENGTH // 2, SLOTS)
    # Not up to the very end: there the torch operations may lose the last token, which nobody reads.
    made.max_num_tokens[:SLOTS] = (made.num_tokens[:SLOTS] + draw(0, 30, SLOTS)).clamp_max(LENGTH - 1)
    made.num_drafts[:] = draw(0, 4, SLOTS + 1)
    made.stop_token_ids = draw(-1, 40, SLOTS + 1, num_stops)
    return made


def _layout(
    of: SequenceStates, seed: int, num_rows: list[int], width: int, num_spare: int
) -> tuple[StepLayout, Tensor]:
    """Sequences with so many rows each, and behind them the spare slot a few times; what is put after each row."""
    generator = torch.Generator().manual_seed(seed)
    num_sequences = len(num_rows) + num_spare
    counts = torch.tensor([*num_rows, *[width] * num_spare])
    firsts = torch.tensor([0, *accumulate(counts.tolist()[:-1])])
    chosen = torch.randperm(SLOTS, generator=generator)[: len(num_rows)]
    slots = torch.cat([chosen, torch.full((num_spare,), of.spare_slot)]).to(DEVICE)
    cells = (firsts[:, None] + torch.minimum(torch.arange(width), counts[:, None] - 1)).to(DEVICE)
    shape = num_sequences, width - 1
    # Now and then a chain.
    is_chain = torch.rand(num_sequences, 1, generator=generator) < 0.4
    parents = (torch.rand(shape, generator=generator) * torch.arange(1, width)).long()
    parents = torch.where(is_chain, torch.arange(width - 1), parents).to(DEVICE)
    token_ids = torch.randint(0, TOKENS, (int(counts.sum()),), generator=generator).to(DEVICE)
    target = token_ids[cells]
    wrong = torch.randint(0, TOKENS, shape, generator=generator).to(DEVICE)
    is_right = torch.rand(shape, generator=generator).to(DEVICE) < 0.8
    drafts = torch.where(is_right, target.gather(1, parents), wrong)
    num_drafts = (torch.rand(num_sequences, generator=generator) * (counts + 1)).long().clamp_max(counts - 1)
    is_absent = torch.rand(num_sequences, generator=generator) < 0.15
    is_absent[len(num_rows) :] = True
    num_drafts = torch.where(is_absent, -1, num_drafts).to(DEVICE)
    of.finished[slots] = num_drafts < 0
    none = torch.empty(0, dtype=torch.int64, device=DEVICE)
    layout = StepLayout(
        numbers=RowNumbers(*[none] * len(RowNumbers._fields))._replace(slots=slots),
        token_ids=none,
        positions=none,
        num_drafts=num_drafts,
        drafts=drafts,
        parents=parents,
        on_path=ancestors(parents) if width > 1 else None,
        cells=cells,
        num_step_rows=len(token_ids),
        num_decoding=num_sequences,
        most_direct_rows=0,
        spans=None,
    )
    return layout, token_ids


def _by_kernel(of: SequenceStates, layout: StepLayout, token_ids: Tensor, depth: int) -> Committed:
    from shard.cuda.decide import decide as kernel

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(of, "is_readable", False)
        patch.setattr(decision, "decide_for", lambda device: kernel)
        return decide(of, layout, token_ids, depth)


def _by_torch(of: SequenceStates, layout: StepLayout, token_ids: Tensor, depth: int) -> Committed:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(of, "is_readable", False)
        patch.setattr(decision, "decide_for", lambda device: None)
        return decide(of, layout, token_ids, depth)


@given(
    seed=st.integers(0, 10_000),
    width=st.sampled_from([1, 2, 5, 9, 33]),
    part=st.lists(st.floats(0, 1), min_size=1, max_size=SLOTS),
    num_spare=st.integers(0, 2),
    num_stops=st.sampled_from([1, 2, 8, 11]),
)
@settings(max_examples=150)
def test_decisions_and_what_is_kept_are_those_of_the_torch_path(
    seed: int, width: int, part: list[float], num_spare: int, num_stops: int
) -> None:
    num_rows = [1 + round(share * (width - 1)) for share in part]
    kernel, plain = _states(seed, num_stops), _states(seed, num_stops)
    layout, token_ids = _layout(kernel, seed, num_rows, width, num_spare)
    plain.finished.copy_(kernel.finished)
    depth = width
    if layout.on_path is not None:
        # No deeper than any tree is: then it is not the width.
        depth = int(layout.on_path.sum(2).max())
    actual, expected = (
        _by_kernel(kernel, layout, token_ids, depth),
        _by_torch(plain, layout, token_ids, depth),
    )
    for name, ours, theirs in zip(expected.decision._fields, actual.decision, expected.decision, strict=True):
        assert torch.equal(ours, theirs), name
    assert torch.equal(actual.num_tokens, expected.num_tokens)
    for name in KEPT:
        assert torch.equal(getattr(kernel, name), getattr(plain, name)), name
    # One tensor is all that the host is sent.
    assert actual.rows is not None
    on_host = actual.to_host()
    assert on_host.rows is not None
    for ours, theirs in zip(
        [*on_host.decision, on_host.num_tokens], [*expected.decision, expected.num_tokens], strict=True
    ):
        assert torch.equal(ours, theirs.cpu())
        assert ours.untyped_storage().data_ptr() == on_host.rows.untyped_storage().data_ptr()
