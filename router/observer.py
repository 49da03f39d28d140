"""Turns what the engine does into numbers for Prometheus. Reads sequences and the scheduler, changes neither."""

import time
from collections.abc import Iterable, Sequence

from router.draft_counts import added_up, by_method, cut_off, num_with
from router.group_info import GroupInfo
from router.metrics import KV_BLOCK_STATES, PROPOSAL_DECISIONS, SEQUENCE_STATES, Metrics
from router.plan import Phase, SequenceResult, StepResult
from router.scheduler import Scheduler
from router.step_costs import StepCosts
from router.stream import Stream


class Observer:
    def __init__(self, metrics: Metrics, *, num_shards: int) -> None:
        self._metrics = metrics
        self._num_shards = num_shards
        # Looked up once: a look-up costs more than setting the value, and these are set at every step.
        self._num_waiting, self._num_running = (metrics.sequences.labels(state) for state in SEQUENCE_STATES)
        self._num_free, self._num_cached, self._num_used = (
            metrics.kv_blocks.labels(state) for state in KV_BLOCK_STATES
        )
        # What the counters have been told of the controller's and the scheduler's own.
        self._num_decisions = dict.fromkeys(PROPOSAL_DECISIONS, 0)
        self._num_preemptions = 0
        # What the outputs of a step bring together.
        self._num_tokens = 0
        self._draft_counts: list[Sequence[int]] = []

    def note_session(self, info: GroupInfo, costs: StepCosts, *, is_new_group: bool) -> None:
        """A session began; `is_new_group` if the shards are others than those of the session before."""
        self._metrics.show_costs(costs)
        self._num_decisions = dict.fromkeys(self._num_decisions, 0)
        self._metrics.prepare(speculation_methods=info.speculation_methods, max_speculative_tokens=info.speculate)
        if is_new_group:
            self._metrics.shard_restarts.inc()
        self.set_shards_up(True)

    def set_shards_up(self, is_up: bool) -> None:
        for rank in range(self._num_shards):
            self._metrics.shard_up.labels(str(rank)).set(is_up)

    def note_admissions(self, streams: Iterable[Stream]) -> None:
        """Call after a plan that admits: streams that got their first slot with it are counted."""
        now = time.monotonic()
        for stream in streams:
            sequence = stream.sequence
            if stream.is_admitted or sequence.num_cached_prompt_tokens is None:
                continue
            stream.is_admitted = True
            self._metrics.queue_time_seconds.observe(now - stream.arrived_s)
            self._metrics.prompt_tokens.inc(sequence.num_prompt_tokens)
            self._metrics.prefix_cache_hit_tokens.inc(sequence.num_cached_prompt_tokens)

    def note_output(self, stream: Stream, result: SequenceResult, *, num_tokens: int) -> None:
        """A reply brought `num_tokens` that are kept. Tokens and drafts are counted with their step: changing a metric
        takes longer than adding up."""
        now, metrics = time.monotonic(), self._metrics
        if stream.last_output_s is None:
            metrics.time_to_first_token_seconds.observe(now - stream.arrived_s)
        else:
            for _ in range(num_tokens):
                metrics.inter_token_latency_seconds.observe((now - stream.last_output_s) / num_tokens)
        stream.last_output_s = now
        self._num_tokens += num_tokens
        if counts := result.draft_counts:
            # Of drafts that a stop string cut off nobody got anything.
            is_cut = num_tokens < len(result.token_ids)
            self._draft_counts.append(cut_off(counts, num_tokens) if is_cut else counts)

    def note_step(self, phase: Phase, result: StepResult) -> None:
        """After its outputs, with which it is counted."""
        metrics = self._metrics
        metrics.step_duration_seconds.labels(phase.value).observe(result.duration_s)
        metrics.generated_tokens.inc(self._num_tokens)
        if self._draft_counts:
            self._count_drafts()
        self._num_tokens = 0
        self._draft_counts.clear()

    def _count_drafts(self) -> None:
        for method, checked, accepted in by_method(added_up(self._draft_counts)):
            if any(checked):
                num_sequences = num_with(method, self._draft_counts)
                self._metrics.count_speculation(method, checked, accepted, num_sequences=num_sequences)

    def set_gauges(self, scheduler: Scheduler) -> None:
        self._num_waiting.set(scheduler.num_waiting)
        self._num_running.set(scheduler.num_running)
        self._num_free.set(scheduler.blocks.num_free_blocks)
        self._num_cached.set(scheduler.blocks.num_cached_blocks)
        self._num_used.set(scheduler.blocks.num_allocated_blocks)
        self._metrics.preemptions.inc(scheduler.num_preemptions - self._num_preemptions)
        self._num_preemptions = scheduler.num_preemptions
        last = scheduler.budget.budget
        self._metrics.draft_min_probability.set(last.price)
        self._metrics.draft_cost_seconds.set(last.row_s)
        self._metrics.token_worth_seconds.set(last.token_s)
        for decision, count in scheduler.budget.num_decisions.items():
            self._metrics.proposals.labels(decision).inc(count - self._num_decisions[decision])
            self._num_decisions[decision] = count
