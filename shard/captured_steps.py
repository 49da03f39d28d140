"""Steps without prompts, captured once for each shape and replayed: a GPU is then told a whole step at once, instead of
hundreds of kernels one by one, each of which takes the host some microseconds.

Owns the shapes: a step is filled up to the next one that is captured, with rows that are masked and with the spare
slot, whose sequence has ended. A shape is run as it is when it first comes, which has kernels compiled, and captured
when it comes again. What changes from step to step is in tensors that are written before a replay. Must not know what a
step computes.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from shard.clock import Timer
from shard.device_step import DeviceStep, StepInputs, StepKind
from shard.layout import RowNumbers, StepRows, pack, unpack
from shard.plan import SequenceStep
from shard.report import Outcome
from shard.speculation import DraftPrice, Proposal
from shard.speculation.prices import DevicePrices

log = logging.getLogger(__name__)

# The time at which a shape is captured.
CAPTURED_AT = 2
# Numbers of sequences: from two on the next is at most half as many more.
_BATCHES = (1, 2, 3, 4, 6, *(2**i * part for i in range(2, 15) for part in (2, 3)))
# Numbers of rows: the next is twice as many, but at most so many more, which a step of many sequences pays for.
_MOST_MORE_ROWS = 64


class CapturedTimer(Timer, Protocol):
    """`marks` [2] int64 are set by each replay: nanoseconds at begin and end."""

    marks: Tensor


class Capture(Protocol):
    """A device that can be shown what to do, and told to do it again."""

    def __call__(self, run: Callable[[], Outcome]) -> tuple[Outcome, Callable[[], None]]:
        """What `run` tells the device is kept and not done. The second result does it, as often as it is called: it
        reads the tensors that `run` reads, whatever they hold by then, and writes the first."""

    def timer(self) -> CapturedTimer: ...


@dataclass(frozen=True, slots=True)
class _Shape:
    """All that the operations of a step follow from. `num_stop_tokens`: how many a sequence has room for."""

    batch: int
    width: int
    num_rows: int
    kind: StepKind
    num_stop_tokens: int


@dataclass(slots=True)
class _Step:
    """`numbers` are read by `run`, and by `replay` once there is one, which writes `outcome`."""

    numbers: Tensor
    run: Callable[[], Outcome]
    outcome: Outcome | None = None
    replay: Callable[[], None] | None = None


class CapturedSteps:
    def __init__(self, step: DeviceStep, capture: Capture) -> None:
        self._step = step
        self._states = step.states
        self.batches = sorted({min(batch, self._states.spare_slot) for batch in _BATCHES})
        self._capture = capture
        self._prices = torch.zeros(len(DevicePrices.pack(())), dtype=torch.float64, device=self._states.device)
        self._steps: dict[_Shape, _Step] = {}

    def run(self, rows: StepRows, kind: StepKind, prices: Sequence[DraftPrice]) -> Outcome | None:
        """Of the rows' sequences, and of some behind them that are not there; None: no such step is captured."""
        if rows.chunks or len(prices) > DevicePrices.MOST:
            return None
        rows = self._fill_up(rows)
        is_asked = kind.proposal is not Proposal.NONE
        numbers = self._numbers(rows, is_asked)
        shape = _Shape(len(rows.decodes), rows.width, rows.num_step_rows, kind, self._states.stop_token_ids.shape[1])
        is_new = shape not in self._steps
        if is_new:
            self._steps[shape] = self._prepare(rows, kind, list(map(len, numbers)))
        step = self._steps[shape]
        step.numbers.copy_(torch.tensor(pack(numbers)), non_blocking=True)
        if is_asked:
            self._prices.copy_(torch.tensor(DevicePrices.pack(prices), dtype=torch.float64), non_blocking=True)
        if is_new:
            return step.run()
        if step.replay is None:
            begin_s = time.perf_counter()
            step.outcome, step.replay = self._capture(step.run)
            taken_ms = 1e3 * (time.perf_counter() - begin_s)
            log.debug("captured in %.0f ms: %d sequences, %d rows, %s", taken_ms, shape.batch, shape.num_rows, kind)
        step.replay()
        return step.outcome

    def _fill_up(self, rows: StepRows) -> StepRows:
        width = 1 if rows.width == 1 else 1 + self._states.draft_token_ids.shape[1]
        batch = next(batch for batch in self.batches if batch >= len(rows.decodes))
        spare = SequenceStep(
            self._states.spare_slot, [], chunk_start=0, chunk_length=0, verify=0, propose=0, propose_depth=0
        )
        decodes = [*rows.decodes, *[(spare, 1)] * (batch - len(rows.decodes))]
        num_rows = sum(count for _, count in decodes)
        missing = self._next_num_rows(num_rows, batch, width) - num_rows
        for i, (step, count) in enumerate(decodes):
            more = min(missing, width - count)
            decodes[i] = step, count + more
            missing -= more
        return StepRows(decodes, width, [], [])

    @staticmethod
    def _numbers(rows: StepRows, is_asked: bool) -> RowNumbers[list[int]]:
        """All are asked or nobody, though some may want no drafts: the lengths follow from the shape."""
        return rows.numbers(asked=list(range(len(rows.decodes))) if is_asked else [])

    def _next_num_rows(self, least: int, batch: int, width: int) -> int:
        num_rows = batch
        while num_rows < least:
            num_rows = min(2 * num_rows, num_rows + _MOST_MORE_ROWS, batch * width, self._step.cache.max_step_rows)
        return num_rows

    def _prepare(self, rows: StepRows, kind: StepKind, sizes: list[int]) -> _Step:
        device = self._states.device
        numbers = torch.zeros(sum(sizes), dtype=torch.int64, device=device)
        filtered = torch.arange(rows.num_step_rows, device=device) if kind.any_filtered else None
        inputs = StepInputs(unpack(numbers, sizes), filtered, DevicePrices(self._prices))
        # Without self: a graph's memory goes at once with whoever holds it, not when the collector comes by.
        step, timer = self._step, self._capture.timer()

        def run() -> Outcome:
            outcome = step.run(rows, kind, inputs, timer, _nothing)
            assert outcome is not None
            return outcome._replace(proposing=None if kind.proposal is Proposal.NONE else timer.marks)

        return _Step(numbers, run)


def _nothing() -> None:
    pass
