"""The rows of a step: which rows belong to which sequence, where they stand, which of them need logits.

Owns the packing order and nothing else: first the rows of decoding sequences (last token, then its pending drafts),
then the prompt chunks. Sequences that yield tokens are numbered in the same order, S of them with up to R rows.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from shard.forward_batch import Span
from shard.plan import SequenceStep
from shard.states import HostSlot, SequenceStates


@dataclass(frozen=True, slots=True)
class StepLayout:
    """N rows in all, M of them with logits, S sequences that yield tokens, at most R rows each.

    token_ids, positions: [N]. logit_rows: [M], their slots: [M]. slots, num_drafts: [S] (-1 where the sequence had
    ended before this step). cells: [S, R] indices into M; behind a sequence's last row they repeat it.
    """

    spans: list[Span]
    token_ids: Tensor
    positions: Tensor
    logit_rows: Tensor
    logit_slots: Tensor
    host_slots: list[HostSlot]
    slots: Tensor
    num_drafts: Tensor
    propose: Tensor
    cells: Tensor
    # Of the S sequences, the first so many decode; the others finished their prompts.
    num_decoding: int


def lay_out(steps: list[SequenceStep], states: SequenceStates) -> StepLayout | None:
    """None if nothing is left to compute: every sequence of the step had ended.

    On CPU looking at the device's counts is free, so exactly the drafts that exist get rows. On CUDA it would stop the
    pipeline, so every decode gets the rows that the plan allows and the surplus is masked.
    """
    decodes = [step for step in steps if not step.chunk_length]
    chunks = [step for step in steps if step.chunk_length]
    if states.device.type == "cpu":
        decode_slots = torch.tensor([step.slot for step in decodes], dtype=torch.int64)
        finished = states.finished[decode_slots].tolist()
        pending = states.num_drafts[decode_slots].tolist()
        live = [(s, min(s.verify, n)) for s, n, done in zip(decodes, pending, finished, strict=True) if not done]
    else:
        live = [(step, step.verify) for step in decodes]
    last_chunks = [s for s in chunks if s.chunk_start + s.chunk_length == states.host[s.slot].num_known_tokens]
    if not live and not chunks:
        return None

    spans = [Span(1 + drafts, states.host[step.slot].block_table, direct=False) for step, drafts in live]
    spans += [Span(step.chunk_length, states.host[step.slot].block_table, direct=True) for step in chunks]
    yielding = [step for step, _ in live] + last_chunks
    num_rows = [1 + drafts for _, drafts in live] + [1] * len(last_chunks)

    # Host lists first, one transfer each.
    row_slot: list[int] = []
    row_offset: list[int] = []
    logit_rows: list[int] = []
    for step, drafts in live:
        logit_rows += range(len(row_slot), len(row_slot) + 1 + drafts)
        row_slot += [step.slot] * (1 + drafts)
        row_offset += range(-1, drafts)
    num_step_rows = len(row_slot)
    for step in chunks:
        row_slot += [step.slot] * step.chunk_length
        row_offset += range(step.chunk_start, step.chunk_start + step.chunk_length)
        if step in last_chunks:
            logit_rows.append(len(row_slot) - 1)
    width = max(num_rows, default=1)
    cells: list[list[int]] = []
    first = 0
    for rows in num_rows:
        cells.append([first + min(r, rows - 1) for r in range(width)])
        first += rows

    def tensor(values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=states.device)

    slots_of_rows, positions = tensor(row_slot), tensor(row_offset)
    # Decode rows count from the committed length, which may be known to the device only.
    decoding = slots_of_rows[:num_step_rows]
    positions[:num_step_rows] += states.num_tokens[decoding]
    if states.device.type != "cpu":
        # A sequence that ended at its limit must not run past its block table.
        positions[:num_step_rows].clamp_(max=states.max_num_tokens[decoding] - 1)
    slots = tensor([step.slot for step in yielding])
    allowed = tensor([drafts for _, drafts in live] + [0] * len(last_chunks))
    num_drafts = torch.where(states.finished[slots], -1, torch.minimum(states.num_drafts[slots], allowed))
    rows = tensor(logit_rows)
    return StepLayout(
        spans=spans,
        token_ids=states.token_ids[slots_of_rows, positions],
        positions=positions,
        logit_rows=rows,
        logit_slots=slots_of_rows[rows],
        host_slots=[states.host[row_slot[row]] for row in logit_rows],
        slots=slots,
        num_drafts=num_drafts,
        propose=tensor([step.propose for step in yielding]),
        cells=tensor([i for row in cells for i in row]).view(len(yielding), width),
        num_decoding=len(live),
    )
