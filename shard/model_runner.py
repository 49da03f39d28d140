"""Runs steps: gives the device what the host knows of each, and brings its results back. Called by one thread.

Must not know what a step computes, nor of gRPC, sessions or what a block means to the router.
"""

import hashlib
import sys
from collections.abc import Callable, Sequence
from functools import partial

import torch

from shard.captured_steps import Capture, CapturedSteps
from shard.clock import Stopwatch
from shard.device_step import DeviceStep, StepInputs, StepKind
from shard.host_copy import integers
from shard.layout import StepRows, pack, plan_rows, unpack
from shard.plan import Sampling, StepPlan, StepResult
from shard.report import Outcome, report, update_digest
from shard.speculation import DraftPrice, Proposal
from shard.speculation.prices import HostPrices
from shard.states import HostSlot


class ModelRunner:
    def __init__(self, step: DeviceStep, *, capture: Capture | None = None, most_chunk_rows: int = sys.maxsize) -> None:
        """With a `capture` attention must be by kernels that read the pages themselves (shard.cuda.kernels), and no
        layer may look at values; a step never has more than `most_chunk_rows` rows of prompts then."""
        self.step = step
        self.states = step.states
        self._captured = CapturedSteps(step, capture, most_chunk_rows=most_chunk_rows) if capture is not None else None
        self._digest = hashlib.blake2b(digest_size=8)

    def reset(self) -> None:
        """Forgets every sequence. Cache contents need no clearing: nothing reads a block that was not written."""
        self.states.reset()
        if self.step.drafter is not None:
            self.step.drafter.reset()
        self._digest = hashlib.blake2b(digest_size=8)

    @property
    def captured_batches(self) -> list[int]:
        """Numbers of sequences for which steps are captured; none if they are not."""
        return self._captured.batches if self._captured is not None else []

    @property
    def captured_chunk_rows(self) -> list[int]:
        """Numbers of rows of prompts for which they are."""
        return self._captured.chunk_rows if self._captured is not None else []

    @torch.inference_mode()
    def launch(self, plan: StepPlan, on_launch: Callable[[], None] = lambda: None) -> Callable[[], StepResult]:
        """Gives the device a step. What is returned waits until it is done there, and is to be called once, in the
        order of the steps; the next step may be launched before.

        `on_launch` is called where the device has all it needs, or (CPU) where the layers begin: the interpreter is
        free for a while.
        """
        # Where nothing is waited for everything is launched at once; else the layers take the time.
        is_asynchronous = not self.states.is_readable
        step_time, proposing_time = Stopwatch(self.states.device), Stopwatch(self.states.device)
        sequences, outcome = dict[int, HostSlot](), None
        with step_time.running():
            self.states.begin_step(plan.released_slots, plan.new_sequences, plan.sequences)
            if self.step.drafter is not None and plan.new_sequences:
                self.step.drafter.begin([new.slot for new in plan.new_sequences])
            if rows := plan_rows(plan.sequences, self.states):
                kind = self._kind(rows, plan.proposal)
                filled = self._captured.fill_up(rows, kind, len(plan.draft_prices)) if self._captured else None
                sequences = self._yielding(filled or rows)
                on_layers = (lambda: None) if is_asynchronous else on_launch
                outcome = self._run(rows, filled, kind, plan.draft_prices, proposing_time, on_layers)
            if outcome is not None:
                outcome = outcome.to_host()
        if is_asynchronous:
            on_launch()
        return partial(self._finish, plan.step_id, sequences, outcome, step_time, proposing_time)

    def _finish(
        self,
        step_id: int,
        sequences: dict[int, HostSlot],
        outcome: Outcome | None,
        step_time: Stopwatch,
        proposing_time: Stopwatch,
    ) -> StepResult:
        duration_ns, proposing_ns = step_time.ns(), proposing_time.ns()
        results = []
        if outcome is not None:
            update_digest(self._digest, sequences, outcome)
            if self.step.group.rank == 0:
                results = report(sequences, outcome)
            proposing_ns += outcome.proposing_ns
        self._digest.update(step_id.to_bytes(8, "little"))
        digest = int.from_bytes(self._digest.digest(), "little")
        return StepResult(step_id, results, digest, duration_ns, proposing_ns)

    def _yielding(self, rows: StepRows) -> dict[int, HostSlot]:
        """By number, the sequences that get tokens."""
        spare = self.states.spare_slot
        return {s: self.states.host[step.slot] for s, step in enumerate(rows.yielding) if step.slot != spare}

    def _kind(self, rows: StepRows, proposal: Proposal) -> StepKind:
        sequences = [self.states.host[step.slot].new for step in rows.yielding]
        is_asked = any(step.propose for step in rows.yielding)
        return StepKind(
            proposal if is_asked else Proposal.NONE,
            any_sampled=any(sequence.sampling.is_sampled for sequence in sequences),
            any_filtered=any(sequence.sampling.is_filtered for sequence in sequences),
            any_logprobs=any(sequence.logprobs for sequence in sequences),
        )

    def _run(
        self,
        rows: StepRows,
        filled: StepRows | None,
        kind: StepKind,
        prices: Sequence[DraftPrice],
        proposing_time: Stopwatch,
        on_launch: Callable[[], None],
    ) -> Outcome | None:
        """A step of `rows`, or of those as they are `filled` up to a captured one; None: no sequence yields tokens."""
        if self._captured is not None and filled is not None:
            return self._captured.run(filled, kind, prices)
        device, numbers = self.states.device, rows.numbers()
        filtered = None
        if kind.any_filtered:
            samplings = [self.states.host[step.slot].new.sampling for step in rows.yielding]
            filtered = integers(_filtered_rows(rows, samplings), device)
        tensors = unpack(integers(pack(numbers), device), list(map(len, numbers)))
        inputs = StepInputs(tensors, filtered, HostPrices(prices))
        return self.step.run(rows, kind, inputs, proposing_time, on_launch)


def _filtered_rows(rows: StepRows, samplings: list[Sampling]) -> list[int]:
    """Of the rows with logits those with a filter."""
    counts = [count for _, count in rows.decodes]
    counts += [1] * (len(samplings) - len(counts))
    each = [sampling for sampling, count in zip(samplings, counts, strict=True) for _ in range(count)]
    return [row for row, sampling in enumerate(each) if sampling.is_filtered]
