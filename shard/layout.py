"""The rows of a step: which rows belong to which sequence, where they stand, which of them need logits.

Owns the packing order and nothing else: first the rows of decoding sequences (last token, then its pending drafts),
then the prompt chunks. Sequences that yield tokens are numbered in the same order, S of them with up to R rows.
"""

from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from shard.forward_batch import Span
from shard.host_copy import integers
from shard.plan import SequenceStep
from shard.speculation.verify import ancestors
from shard.states import HostSlot, SequenceStates


@dataclass(frozen=True, slots=True)
class StepLayout:
    """N rows in all, M of them with logits, S `sequences` that yield tokens, at most R rows each.

    token_ids, positions: [N]. logit_rows: [M], their slots: [M]. slots, num_drafts: [S] (-1 where the sequence had
    ended before this step). drafts, parents: [S, R - 1] and on_path: [S, R, R], the trees to verify (None if R is 1).
    cells: [S, R] indices into M; behind a sequence's last row they repeat it. proposing: [P] indices into S of the
    sequences for which drafts are wanted, of which max_drafts and max_depth [P] say how many.
    """

    spans: list[Span]
    sequences: list[HostSlot]
    token_ids: Tensor
    positions: Tensor
    logit_rows: Tensor
    logit_slots: Tensor
    host_slots: list[HostSlot]
    slots: Tensor
    num_drafts: Tensor
    drafts: Tensor
    parents: Tensor
    on_path: Tensor | None
    cells: Tensor
    proposing: Tensor
    max_drafts: Tensor
    max_depth: Tensor
    # Of the S sequences, the first so many decode; the others finished their prompts.
    num_decoding: int

    @property
    def ancestors(self) -> Tensor | None:
        """Those of the decoding sequences' rows, [num_decoding, R, R]."""
        return None if self.on_path is None else self.on_path[: self.num_decoding]


def lay_out(steps: list[SequenceStep], states: SequenceStates) -> StepLayout | None:
    """None if nothing is left to compute: every sequence of the step had ended.

    Where states are readable, exactly the drafts that exist get rows. Elsewhere every decode gets the rows that the
    plan allows and the surplus is masked.
    """
    live = _decoding(steps, states)
    chunks = [step for step in steps if step.chunk_length]
    last_chunks = [s for s in chunks if s.chunk_start + s.chunk_length == states.host[s.slot].num_known_tokens]
    if not live and not chunks:
        return None

    yielding = [step for step, _ in live] + last_chunks
    num_rows = [1 + drafts for _, drafts in live] + [1] * len(last_chunks)
    width = max(num_rows, default=1)
    sequences = [states.host[step.slot] for step in yielding]
    host_slots = [sequence for sequence, count in zip(sequences, num_rows, strict=True) for _ in range(count)]
    asked = [s for s, step in enumerate(yielding) if step.propose]
    slots, allowed, logit_rows, logit_slots, cells, proposing, max_drafts, max_depth, chunk_slots, positions = _tensors(
        [step.slot for step in yielding],
        [count - 1 for count in num_rows],
        _logit_rows(live, chunks, last_chunks),
        [host.new.slot for host in host_slots],
        _cells(num_rows, width),
        asked,
        [yielding[s].propose for s in asked],
        [yielding[s].propose_depth for s in asked],
        # Rows of prompt chunks are read where they stand; those of decoding sequences are their last token and drafts.
        [step.slot for step in chunks for _ in range(step.chunk_length)],
        [p for step in chunks for p in range(step.chunk_start, step.chunk_start + step.chunk_length)],
        device=states.device,
    )
    drafts, parents = states.draft_token_ids[slots, : width - 1], states.draft_parents[slots, : width - 1]
    on_path = ancestors(parents) if width > 1 else None

    rows = [_step_rows(states, slots, drafts, on_path, num_rows[: len(live)])] if live else []
    if chunks:
        rows.append((states.token_ids[chunk_slots, positions], positions))

    spans = [Span(1 + count, states.host[step.slot].block_table, direct=False) for step, count in live]
    spans += [Span(step.chunk_length, states.host[step.slot].block_table, direct=True) for step in chunks]
    token_ids, positions = rows[0] if len(rows) == 1 else map(torch.cat, zip(*rows, strict=True))
    return StepLayout(
        spans=spans,
        sequences=sequences,
        token_ids=token_ids,
        positions=positions,
        logit_rows=logit_rows,
        logit_slots=logit_slots,
        host_slots=host_slots,
        slots=slots,
        num_drafts=torch.where(states.finished[slots], -1, torch.minimum(states.num_drafts[slots], allowed)),
        drafts=drafts,
        parents=parents,
        on_path=on_path,
        cells=cells.view(len(yielding), width),
        proposing=proposing,
        max_drafts=max_drafts,
        max_depth=max_depth,
        num_decoding=len(live),
    )


def _tensors(*lists: list[int], device: torch.device) -> tuple[Tensor, ...]:
    """Each list as int64, all in one copy to the device."""
    return torch.split(integers(list(chain.from_iterable(lists)), device), [len(values) for values in lists])


def _decoding(steps: list[SequenceStep], states: SequenceStates) -> list[tuple[SequenceStep, int]]:
    """The decodes that get rows, and how many drafts each checks."""
    decodes = [step for step in steps if not step.chunk_length]
    if not states.is_readable:
        return [(step, step.verify) for step in decodes]
    slots = torch.tensor([step.slot for step in decodes], dtype=torch.int64)
    finished, pending = states.finished[slots].tolist(), states.num_drafts[slots].tolist()
    return [(s, min(s.verify, n)) for s, n, done in zip(decodes, pending, finished, strict=True) if not done]


def _step_rows(
    states: SequenceStates, slots: Tensor, drafts: Tensor, on_path: Tensor | None, num_rows: list[int]
) -> tuple[Tensor, Tensor]:
    """Token ids and positions of the decoding sequences' rows: a draft stands as deep as its path is long."""
    decoding = slots[: len(num_rows)]
    # The committed length may be known to the device only.
    last = states.num_tokens[decoding] - 1
    token_ids, positions = states.token_ids[decoding, last][:, None], last[:, None]
    if on_path is not None:
        token_ids = torch.cat([token_ids, drafts[: len(num_rows)]], 1)
        positions = positions + on_path[: len(num_rows)].sum(2) - 1
    if not states.is_readable:
        # A sequence that ended at its limit must not run past its block table.
        positions = torch.minimum(positions, states.max_num_tokens[decoding, None] - 1)
    width = token_ids.shape[1]
    if num_rows == [width] * len(num_rows):
        return token_ids.flatten(), positions.flatten()
    exists = integers([s * width + row for s, count in enumerate(num_rows) for row in range(count)], states.device)
    return token_ids.flatten()[exists], positions.flatten()[exists]


def _logit_rows(
    live: list[tuple[SequenceStep, int]], chunks: list[SequenceStep], last_chunks: list[SequenceStep]
) -> list[int]:
    """All rows of decoding sequences and the last of each finished prompt."""
    end = sum(1 + drafts for _, drafts in live)
    rows = list(range(end))
    for step in chunks:
        end += step.chunk_length
        if step in last_chunks:
            rows.append(end - 1)
    return rows


def _cells(num_rows: list[int], width: int) -> list[int]:
    cells: list[int] = []
    first = 0
    for count in num_rows:
        cells += [first + min(row, count - 1) for row in range(width)]
        first += count
    return cells
