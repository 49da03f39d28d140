"""The rows of a step: which rows belong to which sequence, where they stand, which of them need logits.

Owns the packing order and nothing else: first the rows of decoding sequences (last token, then its pending drafts),
then the prompt chunks. Sequences that yield tokens are numbered in the same order, S of them with up to R rows.

What the host knows of that are StepRows, lists of numbers that go to the device in one tensor. There StepLayout is made
of them, by operations that depend on nothing but the lengths of the lists.
"""

from dataclasses import dataclass
from itertools import accumulate, chain
from typing import Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from shard.attention_groups import Span
from shard.cpu.layout import layout_kernels
from shard.cuda.kernels import layout_for
from shard.cuda.spans import DeviceSpans, find_slots
from shard.host_copy import integers
from shard.plan import SequenceStep
from shard.speculation.verify import ancestors
from shard.states import SequenceStates

Numbers = TypeVar("Numbers", list[int], Tensor)


class RowNumbers(NamedTuple, Generic[Numbers]):
    """Integers of N rows in T spans, M of the rows with logits, S sequences that yield tokens, at most R rows each.

    Of the sequences [S] their slots and how many drafts the plan allows; `cells` [S * R] are indices into M, behind a
    sequence's last row they repeat it. logit_rows [M] and their slots [M]. `proposing` [P] are indices into S of the
    sequences for which drafts are wanted, of which max_drafts and max_depth [P] say how many. Of the spans [T] the
    first row, the number of rows and the slot. `existing` are the rows that are, of R for each decode; none where all
    are. Of the rows of prompt chunks slot and position.
    """

    slots: Numbers
    allowed: Numbers
    cells: Numbers
    logit_rows: Numbers
    logit_slots: Numbers
    proposing: Numbers
    max_drafts: Numbers
    max_depth: Numbers
    first_rows: Numbers
    num_rows: Numbers
    span_slots: Numbers
    existing: Numbers
    chunk_slots: Numbers
    chunk_positions: Numbers


@dataclass(frozen=True, slots=True)
class StepRows:
    """Decodes with the number of rows that each gets, `width` (R) at most; then chunks of up to `most_direct_rows`,
    each with who gets a token after it: nobody, if it does not finish its prompt."""

    decodes: list[tuple[SequenceStep, int]]
    width: int
    chunks: list[tuple[SequenceStep, SequenceStep | None]]
    most_direct_rows: int

    @property
    def yielding(self) -> list[SequenceStep]:
        """The S sequences that get tokens."""
        return [step for step, _ in self.decodes] + [step for _, step in self.chunks if step is not None]

    @property
    def num_step_rows(self) -> int:
        return sum(count for _, count in self.decodes)

    def spans(self, states: SequenceStates) -> list[Span]:
        spans = [Span(count, states.host[step.slot].block_table, direct=False) for step, count in self.decodes]
        return spans + [
            Span(step.chunk_length, states.host[step.slot].block_table, direct=True) for step, _ in self.chunks
        ]

    def numbers(self, *, asked: list[int] | None = None) -> RowNumbers[list[int]]:
        """`asked`: which of the S sequences propose; None: those for which drafts are wanted."""
        yielding, width = self.yielding, self.width
        chunks = [chunk for chunk, _ in self.chunks]
        decode_rows = [count for _, count in self.decodes]
        counts = decode_rows + [1] * (len(yielding) - len(decode_rows))
        if asked is None:
            asked = [s for s, step in enumerate(yielding) if step.propose]
        num_rows = decode_rows + [chunk.chunk_length for chunk in chunks]
        is_even = decode_rows == [width] * len(decode_rows)
        return RowNumbers(
            slots=[step.slot for step in yielding],
            allowed=[step.verify for step in yielding],
            cells=_cells(counts, width),
            logit_rows=self._logit_rows(),
            logit_slots=[step.slot for step, count in zip(yielding, counts, strict=True) for _ in range(count)],
            proposing=asked,
            max_drafts=[yielding[s].propose for s in asked],
            max_depth=[yielding[s].propose_depth for s in asked],
            first_rows=list(accumulate(num_rows[:-1], initial=0)),
            num_rows=num_rows,
            span_slots=[step.slot for step, _ in self.decodes] + [chunk.slot for chunk in chunks],
            existing=[] if is_even else [s * width + r for s, count in enumerate(decode_rows) for r in range(count)],
            chunk_slots=[chunk.slot for chunk in chunks for _ in range(chunk.chunk_length)],
            chunk_positions=[
                p for chunk in chunks for p in range(chunk.chunk_start, chunk.chunk_start + chunk.chunk_length)
            ],
        )

    def _logit_rows(self) -> list[int]:
        """All rows of decodes and the last of each finished prompt."""
        end = self.num_step_rows
        rows = list(range(end))
        for chunk, yielding in self.chunks:
            end += chunk.chunk_length
            if yielding is not None:
                rows.append(end - 1)
        return rows


@dataclass(frozen=True, slots=True)
class StepLayout:
    """The rows of a step on the device; see RowNumbers for N, M, S, R, P and T.

    token_ids, positions: [N]. num_drafts: [S], of the pending ones those to check (-1 where the sequence had ended
    before this step). drafts, parents: [S, R - 1] and on_path: [S, R, R], the trees to verify (None if R is 1). cells:
    [S, R].
    """

    numbers: RowNumbers[Tensor]
    token_ids: Tensor
    positions: Tensor
    num_drafts: Tensor
    drafts: Tensor
    parents: Tensor
    on_path: Tensor | None
    cells: Tensor
    num_step_rows: int
    # Of the S sequences, the first so many decode; the others finished their prompts.
    num_decoding: int
    most_direct_rows: int
    # Where they came with the rows.
    spans: DeviceSpans | None

    @property
    def ancestors(self) -> Tensor | None:
        """Those of the decoding sequences' rows, [num_decoding, R, R]."""
        return None if self.on_path is None else self.on_path[: self.num_decoding]

    def device_spans(self, states: SequenceStates) -> DeviceSpans:
        """Over the block tables of all slots."""
        if self.spans is not None:
            return self.spans
        tables, way = states.block_tables, self.ancestors
        if way is None and self.num_decoding:
            way = torch.ones(1, 1, 1, dtype=torch.bool, device=tables.device)
        rows = torch.stack([self.numbers.first_rows, self.numbers.num_rows, self.numbers.span_slots], 1).int()
        return DeviceSpans(
            rows,
            tables,
            self.positions.contiguous(),
            find_slots(rows, tables, self.positions, states.block_size),
            None if way is None else way.contiguous().view(torch.uint8),
            self.num_decoding,
            self.num_step_rows,
            self.most_direct_rows,
        )


def plan_rows(steps: list[SequenceStep], states: SequenceStates) -> StepRows | None:
    """None if nothing is left to compute: every sequence of the step had ended.

    Where states are readable, exactly the drafts that exist get rows. Elsewhere every decode gets the rows that the
    plan allows and the surplus is masked.
    """
    decodes = _decoding(steps, states)
    chunks = [step for step in steps if step.chunk_length]
    if not decodes and not chunks:
        return None
    return StepRows(
        decodes,
        max((count for _, count in decodes), default=1),
        [(s, s if s.chunk_start + s.chunk_length == states.host[s.slot].num_known_tokens else None) for s in chunks],
        max((step.chunk_length for step in chunks), default=0),
    )


def lay_out(rows: StepRows, numbers: RowNumbers[Tensor], states: SequenceStates) -> StepLayout:
    """`numbers` are those of `rows`, on the device."""
    num_decoding, width, slots = len(rows.decodes), rows.width, numbers.slots
    on_path: Tensor | None
    spans = None
    if states.is_readable and (kernels := layout_kernels()):
        token_ids, positions, num_drafts, drafts, parents, on_path = kernels.lay_out(
            states.kept,
            slots,
            numbers.allowed,
            numbers.num_rows,
            numbers.chunk_slots,
            numbers.chunk_positions,
            num_decoding=num_decoding,
            num_step_rows=rows.num_step_rows,
            width=width,
        )
    elif not states.is_readable and not rows.chunks and (by_kernel := layout_for(states.device)):
        token_ids, positions, num_drafts, drafts, parents, on_path, spans = by_kernel(
            states,
            slots=slots,
            allowed=numbers.allowed,
            first_rows=numbers.first_rows,
            num_rows=numbers.num_rows,
            num_step_rows=rows.num_step_rows,
            width=width,
        )
    else:
        drafts, parents = states.draft_token_ids[slots, : width - 1], states.draft_parents[slots, : width - 1]
        on_path = ancestors(parents) if width > 1 else None
        parts = [_step_rows(states, numbers, num_decoding, drafts, on_path)] if num_decoding else []
        if rows.chunks:
            positions = numbers.chunk_positions
            parts.append((states.token_ids[numbers.chunk_slots, positions], positions))
        token_ids, positions = parts[0] if len(parts) == 1 else map(torch.cat, zip(*parts, strict=True))
        num_drafts = torch.where(states.finished[slots], -1, torch.minimum(states.num_drafts[slots], numbers.allowed))
    return StepLayout(
        numbers=numbers,
        token_ids=token_ids,
        positions=positions,
        num_drafts=num_drafts,
        drafts=drafts,
        parents=parents,
        on_path=on_path if width > 1 else None,
        cells=numbers.cells.view(len(slots), width),
        num_step_rows=rows.num_step_rows,
        num_decoding=num_decoding,
        most_direct_rows=rows.most_direct_rows,
        spans=spans,
    )


def pack(numbers: RowNumbers[list[int]]) -> list[int]:
    return list(chain.from_iterable(numbers))


def unpack(packed: Tensor, sizes: list[int]) -> RowNumbers[Tensor]:
    """Views of what `pack` made, on the device."""
    return RowNumbers(*torch.split(packed, sizes))


def _decoding(steps: list[SequenceStep], states: SequenceStates) -> list[tuple[SequenceStep, int]]:
    """The decodes that get rows, and how many."""
    decodes = [step for step in steps if not step.chunk_length]
    if not states.is_readable:
        return [(step, 1 + step.verify) for step in decodes]
    slots = integers([step.slot for step in decodes])
    finished, pending = states.finished[slots].tolist(), states.num_drafts[slots].tolist()
    return [(s, 1 + min(s.verify, n)) for s, n, done in zip(decodes, pending, finished, strict=True) if not done]


def _step_rows(
    states: SequenceStates, numbers: RowNumbers[Tensor], num_decoding: int, drafts: Tensor, on_path: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Token ids and positions of the decoding sequences' rows: a draft stands as deep as its path is long."""
    decoding = numbers.slots[:num_decoding]
    # The committed length may be known to the device only.
    last = states.num_tokens[decoding] - 1
    token_ids, positions = states.token_ids[decoding, last][:, None], last[:, None]
    if on_path is not None:
        token_ids = torch.cat([token_ids, drafts[:num_decoding]], 1)
        positions = positions + on_path[:num_decoding].sum(2) - 1
    if not states.is_readable:
        # A sequence that ended at its limit must not run past its block table.
        positions = torch.minimum(positions, states.max_num_tokens[decoding, None] - 1)
    token_ids, positions = token_ids.flatten(), positions.flatten()
    if not numbers.existing.numel():
        return token_ids, positions
    return token_ids[numbers.existing], positions[numbers.existing]


def _cells(counts: list[int], width: int) -> list[int]:
    cells: list[int] = []
    first = 0
    for count in counts:
        cells += [first + min(row, count - 1) for row in range(width)]
        first += count
    return cells
