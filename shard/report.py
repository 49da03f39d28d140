"""What a step brought, as the router is told: tokens, log-probabilities and what became of the drafts.

Pure; on rank 0. Must not know how any of it was decided.
"""

from torch import Tensor

from shard.decision import Decision
from shard.layout import StepLayout
from shard.plan import DraftCounts, SequenceResult
from shard.speculation import Method


def report(
    layout: StepLayout, decision: Decision, logprobs: Tensor | None, counts: Tensor | None
) -> list[SequenceResult]:
    """One result per sequence that got tokens. `logprobs` [M] are of the rows with logits, None if nobody asked;
    `counts` [S, 2, methods, K] as from Drafter.counts, None if there were no drafts."""
    token_ids, emitted = decision.token_ids.tolist(), decision.num_emitted.tolist()
    accepted, checked = decision.num_accepted.tolist(), decision.num_checked.tolist()
    values = _path_values(layout, decision, logprobs) if logprobs is not None else None
    by_method = counts.tolist() if counts is not None else None
    return [
        SequenceResult(
            slot=slot,
            token_ids=token_ids[s][: emitted[s]],
            logprobs=values[s][: emitted[s]] if values is not None and _wants_logprobs(layout, s) else [],
            drafted=checked[s],
            accepted=accepted[s],
            draft_counts=_draft_counts(*by_method[s]) if by_method is not None and checked[s] else [],
        )
        for s, slot in enumerate(layout.slots.tolist())
        if emitted[s]
    ]


def _path_values(layout: StepLayout, decision: Decision, values: Tensor) -> list[list[float]]:
    """Of the values [M] of all rows those on each sequence's path, [S, D]."""
    on_path: list[list[float]] = values[layout.cells.gather(1, decision.path)].tolist()
    return on_path


def _wants_logprobs(layout: StepLayout, sequence: int) -> bool:
    return layout.host_slots[int(layout.cells[sequence, 0])].new.logprobs


def _draft_counts(drafted: list[list[int]], accepted: list[list[int]]) -> list[DraftCounts]:
    """Rows are methods in the order of their values."""
    return [
        DraftCounts(method, drafted[method - 1], accepted[method - 1]) for method in Method if any(drafted[method - 1])
    ]
