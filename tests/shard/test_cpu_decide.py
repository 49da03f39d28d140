"""The compiled functions against the torch operations that they stand for; verify is in test_verify.py."""

from unittest import mock

import torch
from hypothesis import given
from hypothesis import strategies as st

from shard import states
from shard.speculation import DraftTree
from shard.states import SequenceStates

SLOTS, LENGTH = 5, 12


def _states(seed: int) -> SequenceStates:
    made = SequenceStates(
        num_slots=SLOTS, max_total_tokens=LENGTH, tree_size=3, block_size=16, device=torch.device("cpu")
    )
    generator = torch.Generator().manual_seed(seed)
    made.token_ids.random_(0, 100, generator=generator)
    # Not up to the very end: there the torch operations may lose the last token, which nobody reads.
    made.num_tokens.random_(1, LENGTH - 3, generator=generator)
    made.num_drafts.random_(0, 4, generator=generator)
    made.finished[:] = torch.rand(SLOTS + 1, generator=generator) < 0.3
    return made


@given(seed=st.integers(0, 1000), num_sequences=st.integers(1, SLOTS), width=st.integers(1, 4))
def test_tokens_are_appended_where_they_belong_and_nothing_else_changes(
    seed: int, num_sequences: int, width: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    slots = torch.randperm(SLOTS, generator=generator)[:num_sequences]
    token_ids = torch.randint(100, 200, (num_sequences, 6), generator=generator)[:, :width]
    finished = torch.rand(num_sequences, generator=generator) < 0.3
    compiled, plain = _states(seed), _states(seed)
    num_emitted = torch.randint(0, width + 1, (num_sequences,), generator=generator)
    compiled.append(slots, token_ids, num_emitted, finished)
    with mock.patch.object(states, "decision_kernels", return_value=None):
        plain.append(slots, token_ids, num_emitted, finished)
    for name in ("token_ids", "num_tokens", "num_drafts", "finished"):
        assert torch.equal(getattr(compiled, name), getattr(plain, name)), name


@given(seed=st.integers(0, 1000), num_sequences=st.integers(1, SLOTS))
def test_drafts_are_kept_as_by_the_torch_operations(seed: int, num_sequences: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    slots = torch.randperm(SLOTS, generator=generator)[:num_sequences]
    compiled, plain = _states(seed), _states(seed)
    size = compiled.draft_token_ids.shape[1]
    tree = DraftTree(
        torch.randint(100, 200, (num_sequences, size), generator=generator),
        torch.randint(0, 1, (num_sequences, size), generator=generator),
        torch.randint(0, size + 1, (num_sequences,), generator=generator),
    )
    compiled.set_drafts(slots, tree)
    with mock.patch.object(states, "decision_kernels", return_value=None):
        plain.set_drafts(slots, tree)
    for name in ("draft_token_ids", "draft_parents", "num_drafts"):
        assert torch.equal(getattr(compiled, name), getattr(plain, name)), name
