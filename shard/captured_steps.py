"""Steps of few rows, captured once for each shape and replayed: a GPU is then told a whole step at once, instead of
hundreds of kernels one by one, each of which takes the host some microseconds.

Owns the shapes: a step is filled up to the next one that is captured, with rows that are masked and with the spare
slot, whose sequence has ended. A shape is run as it is when it first comes, which has kernels compiled, and captured
when it comes again. What changes from step to step is in tensors that are written before a replay. Must not know what a
step computes.

    decodes | of so many sequences and the spare one, their rows                    |
    chunks  | of some prompts, of the spare sequence what is missing of their rows  |
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
from shard.host_copy import integers
from shard.layout import RowNumbers, StepRows, pack, unpack
from shard.plan import SequenceStep
from shard.report import Outcome
from shard.speculation import DraftPrice, Proposal
from shard.speculation.prices import DevicePrices

log = logging.getLogger(__name__)

# The time at which a shape is captured. Those with prompts are many, and some come never again: by then what they cost
# more than a replay is about what capturing one costs.
CAPTURED_AT, PROMPTS_CAPTURED_AT = 2, 3
# Numbers of sequences: from two on the next is at most half as many more.
_BATCHES = (1, 2, 3, 4, 6, *(2**i * part for i in range(2, 15) for part in (2, 3)))
# Numbers of prompts, a spare one among them, and of their rows: with more the device takes longer than the host.
_CHUNKS, _CHUNK_ROWS = (4, 16), (64, 256, 512)
# However much memory the device has for them: each also takes some of the host's, and time to capture.
_MOST_CAPTURED = 512
# Numbers of rows of decodes: the next is so many times as many, but at most so many more, which many sequences pay for.
# Beside prompts there are fewer, so that each comes again soon.
_ROWS, _ROWS_BESIDE_PROMPTS = (2, 64), (4, 128)


class CapturedTimer(Timer, Protocol):
    """`marks` [2] int64 are set by each replay: nanoseconds at begin and end."""

    marks: Tensor


class Capture(Protocol):
    """A device that can be shown what to do, and told to do it again."""

    def __call__(self, run: Callable[[], Outcome]) -> tuple[Outcome, Callable[[], None]]:
        """What `run` tells the device is kept and not done. The second result does it, as often as it is called: it
        reads the tensors that `run` reads, whatever they hold by then, and writes the first."""

    def timer(self) -> CapturedTimer: ...

    def has_room(self) -> bool:
        """Whether the device has memory for what one more keeps. Asking waits for the device."""


@dataclass(frozen=True, slots=True)
class _Shape:
    """All that the operations of a step follow from. `num_stop_tokens`: how many a sequence has room for."""

    batch: int
    width: int
    num_rows: int
    kind: StepKind
    num_stop_tokens: int
    num_chunks: int
    most_chunk_rows: int


@dataclass(slots=True)
class _Step:
    """`numbers` are read by `run`, and by what was `captured` of it, as by a Capture."""

    numbers: Tensor
    run: Callable[[], Outcome]
    num_runs: int = 0
    captured: tuple[Outcome, Callable[[], None]] | None = None


class CapturedSteps:
    def __init__(self, step: DeviceStep, capture: Capture, *, most_chunk_rows: int) -> None:
        """With more rows of prompts steps are not captured, and none is filled up to more."""
        self._step = step
        self._states = step.states
        self.batches = sorted({min(batch, self._states.spare_slot) for batch in _BATCHES})
        self._capture = capture
        self._prices = torch.zeros(len(DevicePrices.pack(())), dtype=torch.float64, device=self._states.device)
        longest = min(most_chunk_rows, self._states.token_ids.shape[1])
        self.chunk_rows = sorted({min(most, longest) for most in _CHUNK_ROWS})
        self._steps: dict[_Shape, _Step] = {}
        self._num_captured = 0
        self._is_full = False

    def fill_up(self, rows: StepRows, kind: StepKind, num_prices: int) -> StepRows | None:
        """The rows of a step that is captured, or may be, with those of `rows` among them, its sequences in the same
        order; None: there is no such step."""
        num_chunk_rows = sum(chunk.chunk_length for chunk, _ in rows.chunks)
        is_large = num_chunk_rows > self.chunk_rows[-1] or len(rows.chunks) >= _CHUNKS[-1]
        if num_prices > DevicePrices.MOST or is_large:
            return None
        width = 1 if rows.width == 1 else 1 + self._states.draft_token_ids.shape[1]
        chunks, most_direct_rows = self._fill_up_chunks(rows, num_chunk_rows) if rows.chunks else ([], 0)
        decodes = self._fill_up_decodes(rows, width, len(chunks))
        if decodes is None:
            return None
        filled = StepRows(decodes, width, chunks, most_direct_rows)
        return None if self._is_full and not self._is_captured(self._shape(filled, kind)) else filled

    def _is_captured(self, shape: _Shape) -> bool:
        step = self._steps.get(shape)
        return step is not None and step.captured is not None

    def _shape(self, rows: StepRows, kind: StepKind) -> _Shape:
        return _Shape(
            len(rows.decodes),
            rows.width,
            rows.num_step_rows,
            kind,
            self._states.stop_token_ids.shape[1],
            len(rows.chunks),
            rows.most_direct_rows,
        )

    def run(self, rows: StepRows, kind: StepKind, prices: Sequence[DraftPrice]) -> Outcome:
        """A step that is filled up."""
        is_asked = kind.proposal is not Proposal.NONE
        numbers = self._numbers(rows, is_asked)
        shape = self._shape(rows, kind)
        if shape not in self._steps:
            self._steps[shape] = self._prepare(rows, kind, list(map(len, numbers)))
        step = self._steps[shape]
        step.numbers.copy_(integers(pack(numbers)), non_blocking=True)
        if is_asked:
            self._prices.copy_(torch.tensor(DevicePrices.pack(prices), dtype=torch.float64), non_blocking=True)
        step.num_runs += 1
        if step.captured is None:
            if not self._is_to_be_captured(shape, step):
                return step.run()
            self._num_captured += 1
            begin_s = time.perf_counter()
            step.captured = self._capture(step.run)
            log.debug("captured in %.0f ms: %s", 1e3 * (time.perf_counter() - begin_s), shape)
        outcome, replay = step.captured
        replay()
        return outcome

    def _is_to_be_captured(self, shape: _Shape, step: _Step) -> bool:
        if self._is_full or step.num_runs < (PROMPTS_CAPTURED_AT if shape.num_chunks else CAPTURED_AT):
            return False
        self._is_full = self._num_captured >= _MOST_CAPTURED or not self._all_have_room()
        if self._is_full:
            log.warning(
                "%d steps are captured and there is no room for more: others run kernel by kernel", self._num_captured
            )
        return not self._is_full

    def _all_have_room(self) -> bool:
        """On every rank: the collectives of a step must be in graphs on all of them, or on none (NCCL's guide)."""
        lacking = torch.tensor([float(not self._capture.has_room())], device=self._states.device)
        return self._step.group.all_reduce(lacking).item() == 0

    def _fill_up_decodes(self, rows: StepRows, width: int, num_chunks: int) -> list[tuple[SequenceStep, int]] | None:
        """None: there would be logits of more rows than the largest step has, which are not counted."""
        if not rows.decodes:
            return []
        batch = next(batch for batch in self.batches if batch >= len(rows.decodes))
        decodes = [*rows.decodes, *[(self._spare(0), 1)] * (batch - len(rows.decodes))]
        num_rows = sum(count for _, count in decodes)
        most = min(batch * width, self._step.cache.max_step_rows - num_chunks)
        if num_rows > most:
            return None
        missing = _next_num_rows(num_rows, batch, most, _ROWS_BESIDE_PROMPTS if num_chunks else _ROWS) - num_rows
        for i, (step, count) in enumerate(decodes):
            more = min(missing, width - count)
            decodes[i] = step, count + more
            missing -= more
        return decodes

    def _fill_up_chunks(
        self, rows: StepRows, num_rows: int
    ) -> tuple[list[tuple[SequenceStep, SequenceStep | None]], int]:
        """And their rows together, which is the most that one of them has in a step of that shape."""
        most = next(most for most in self.chunk_rows if most >= num_rows)
        # Of the spare ones the first has the rows that are missing.
        num_spare = next(number for number in _CHUNKS if number > len(rows.chunks)) - len(rows.chunks)
        spare = [self._spare(most - num_rows), *[self._spare(0)] * (num_spare - 1)]
        real = [(chunk, self._spare(0) if yielding is None else yielding) for chunk, yielding in rows.chunks]
        return [*real, *((chunk, chunk) for chunk in spare)], most

    def _spare(self, chunk_length: int) -> SequenceStep:
        slot = self._states.spare_slot
        return SequenceStep(slot, [], chunk_start=0, chunk_length=chunk_length, verify=0, propose=0, propose_depth=0)

    @staticmethod
    def _numbers(rows: StepRows, is_asked: bool) -> RowNumbers[list[int]]:
        """All are asked or nobody, though some may want no drafts: the lengths follow from the shape."""
        return rows.numbers(asked=list(range(len(rows.yielding))) if is_asked else [])

    def _prepare(self, rows: StepRows, kind: StepKind, sizes: list[int]) -> _Step:
        device = self._states.device
        packed = torch.zeros(sum(sizes), dtype=torch.int64, device=device)
        numbers = unpack(packed, sizes)
        filtered = torch.arange(len(numbers.logit_rows), device=device) if kind.any_filtered else None
        inputs = StepInputs(numbers, filtered, DevicePrices(self._prices))
        # Without self: a graph's memory goes at once with whoever holds it, not when the collector comes by.
        step, timer = self._step, self._capture.timer()

        def run() -> Outcome:
            outcome = step.run(rows, kind, inputs, timer)
            assert outcome is not None
            return outcome._replace(proposing=None if kind.proposal is Proposal.NONE else timer.marks)

        return _Step(packed, run)


def _next_num_rows(least: int, batch: int, most: int, growth: tuple[int, int]) -> int:
    factor, most_more = growth
    num_rows = batch
    while num_rows < least:
        num_rows = min(factor * num_rows, num_rows + most_more, most)
    return num_rows
