"""What rank 0 decides in a step and tells the others: tokens, and the drafts of the next step.

Every rank applies exactly this; no rank trusts its own arithmetic for a token.
"""

from itertools import accumulate, pairwise
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from shard.cpu.decide import decision_kernels
from shard.cuda.kernels import decide_for
from shard.distributed import TPGroup
from shard.host_copy import copied_to_host
from shard.layout import StepLayout
from shard.speculation.verify import verify
from shard.states import SequenceStates


class Decision(NamedTuple):
    """All int64. Of token_ids and path [S, D] the first num_emitted [S] count (see Verdict); finished is 0 or 1."""

    token_ids: Tensor
    path: Tensor
    num_emitted: Tensor
    num_accepted: Tensor
    num_checked: Tensor
    finished: Tensor

    @staticmethod
    def shapes(num_sequences: int, depth: int) -> list[tuple[int, ...]]:
        return [(num_sequences, depth)] * 2 + [(num_sequences,)] * 4


class Committed(NamedTuple):
    """A decision that sequences have followed: they have num_tokens [S] now, int64. `rows` [S, 2 * D + 5], a row for
    each sequence, are what all of it is views of; None: it is tensors of their own."""

    decision: Decision
    num_tokens: Tensor
    rows: Tensor | None = None

    @classmethod
    def of_rows(cls, rows: Tensor) -> "Committed":
        depth = (rows.shape[1] - 5) // 2
        token_ids, path, numbers = torch.split(rows, [depth, depth, 5], 1)
        *decided, num_tokens = numbers.unbind(1)
        return cls(Decision(token_ids, path, *decided), num_tokens, rows)

    def to_host(self) -> "Committed":
        """The same on the host, in one copy if it can be, once the device has come so far: nothing is waited for."""
        if self.rows is not None:
            return Committed.of_rows(copied_to_host(self.rows))
        return Committed(Decision(*map(copied_to_host, self.decision)), copied_to_host(self.num_tokens))


def decide(states: SequenceStates, layout: StepLayout, token_ids: Tensor, depth: int) -> Committed:
    """Of the `token_ids` [M] that the model puts after rows, which count, committed. `depth` (D) is the most that a
    sequence of the step can emit."""
    slots, stop_token_ids = layout.numbers.slots, states.stop_token_ids
    if states.is_readable and (kernels := decision_kernels()):
        token_ids, path, num_emitted, num_accepted, finished = kernels.decide(
            states.kept,
            stop_token_ids,
            slots=slots,
            token_ids=token_ids,
            cells=layout.cells,
            drafts=layout.drafts,
            parents=layout.parents,
            num_drafts=layout.num_drafts,
            depth=depth,
        )
        decision = Decision(token_ids, path, num_emitted, num_accepted, layout.num_drafts, finished)
        return Committed(decision, states.num_tokens.index_select(0, slots))
    if decide_rows := decide_for(states.device):
        rows = decide_rows(
            states,
            slots=slots,
            token_ids=token_ids,
            cells=layout.cells,
            drafts=layout.drafts,
            parents=layout.parents,
            on_path=layout.on_path,
            num_drafts=layout.num_drafts,
            depth=depth,
        )
        return Committed.of_rows(rows)
    verdict = verify(
        token_ids[layout.cells],
        layout.drafts,
        layout.parents,
        layout.on_path,
        num_drafts=layout.num_drafts,
        num_tokens=states.num_tokens[slots],
        max_num_tokens=states.max_num_tokens[slots],
        stop_token_ids=stop_token_ids[slots],
    )
    token_ids, path = verdict.token_ids[:, :depth], verdict.path[:, :depth]
    states.append(slots, token_ids, verdict.num_emitted, verdict.finished)
    decision = Decision(
        token_ids, path, verdict.num_emitted, verdict.num_accepted, layout.num_drafts, verdict.finished.long()
    )
    return Committed(decision, states.num_tokens.index_select(0, slots))


def send(group: TPGroup, tensors: list[Tensor]) -> None:
    """Rank 0: int64 tensors in one broadcast."""
    if group.size > 1:
        group.broadcast(torch.cat([tensor.flatten() for tensor in tensors]))


def receive(group: TPGroup, shapes: list[tuple[int, ...]], device: torch.device) -> list[Tensor]:
    """The other ranks: what `send` was given, whose shapes they know."""
    ends = list(accumulate((prod(shape) for shape in shapes), initial=0))
    packed = group.broadcast(torch.empty(ends[-1], dtype=torch.int64, device=device))
    return [packed[start:end].view(shape) for (start, end), shape in zip(pairwise(ends), shapes, strict=True)]
