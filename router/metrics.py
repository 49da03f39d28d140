"""What Prometheus sees: the names, labels and buckets, and one registry that holds them.

Owns no numbers' meaning beyond the help texts. The gRPC edge counts `requests` and `request_duration_seconds`, because
it alone sees every request end; the engine counts the rest.
"""

from collections.abc import Iterable, Sequence
from functools import partial

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

from router.plan import Phase
from router.step_costs import StepCosts

REQUEST_STATUSES = ("stop", "length", "cancelled", "deadline", "invalid", "overloaded", "error")
SEQUENCE_STATES = ("waiting", "running")
# free: holds nothing; cached: held only by the prefix cache; used: held by a sequence.
KV_BLOCK_STATES = ("free", "cached", "used")
# asked: for drafts; paused: they do not pay for this sequence; too_dear: at this load no draft could pay.
PROPOSAL_DECISIONS = ("asked", "paused", "too_dear")

# Seconds. A request lasts from a cache hit with one token to minutes of text.
_REQUEST_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 60, 120, 300, 600)
_WAIT_BUCKETS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_STEP_BUCKETS = (0.001, 0.002, 0.004, 0.006, 0.008, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1, 2.5)


class Metrics:
    """One instance per process. Every series whose labels are bounded exists from the start, at 0."""

    def __init__(self) -> None:
        # The library would add a `_created` series to every counter, which no linter and no user wants.
        prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        counter = partial(Counter, registry=self.registry)
        gauge = partial(Gauge, registry=self.registry)
        histogram = partial(Histogram, registry=self.registry)
        self.requests = counter(
            "drafthouse_requests_total",
            "Requests by how they ended, but those that were too large or too many to be read.",
            ["status"],
        )
        self.request_duration_seconds = histogram(
            "drafthouse_request_duration_seconds",
            "Time from a request's arrival to its end.",
            buckets=_REQUEST_BUCKETS,
        )
        self.time_to_first_token_seconds = histogram(
            "drafthouse_time_to_first_token_seconds",
            "Time of a choice from its arrival in the queue, tokenized, to its first token.",
            buckets=_WAIT_BUCKETS,
        )
        self.inter_token_latency_seconds = histogram(
            "drafthouse_inter_token_latency_seconds",
            "Time between the tokens of a sequence; a step that yields several shares its time among them.",
            buckets=_STEP_BUCKETS,
        )
        self.queue_time_seconds = histogram(
            "drafthouse_queue_time_seconds",
            "Time of a choice from its arrival in the queue, tokenized, to its first step.",
            buckets=_WAIT_BUCKETS,
        )
        self.prompt_tokens = counter(
            "drafthouse_prompt_tokens_total", "Prompt tokens of the choices that were admitted."
        )
        self.generated_tokens = counter("drafthouse_generated_tokens_total", "Tokens that were sent to clients.")
        self.prefix_cache_hit_tokens = counter(
            "drafthouse_prefix_cache_hit_tokens_total",
            "Prompt tokens whose keys and values came from the prefix cache.",
        )
        self.sequences = gauge("drafthouse_sequences", "Sequences in the scheduler by state.", ["state"])
        self.preemptions = counter(
            "drafthouse_preemptions_total",
            "Sequences that gave their KV blocks to older ones, to be computed again.",
        )
        self.kv_blocks = gauge("drafthouse_kv_blocks", "Blocks of the KV cache by state.", ["state"])
        self.step_duration_seconds = histogram(
            "drafthouse_step_duration_seconds",
            "Time of a step on rank 0's device: by a GPU's own clock, or on the thread that computes.",
            ["phase"],
            buckets=_STEP_BUCKETS,
        )
        self.speculation_steps = counter(
            "drafthouse_speculation_steps_total",
            "Steps of a sequence in which drafts were verified, by where the drafts came from.",
            ["method"],
        )
        self.speculation_drafted_tokens = counter(
            "drafthouse_speculation_drafted_tokens_total",
            "Draft tokens verified, by how far ahead they reach, from 1.",
            ["method", "position"],
        )
        self.speculation_accepted_tokens = counter(
            "drafthouse_speculation_accepted_tokens_total",
            "Draft tokens accepted, by how far ahead they reach, from 1.",
            ["method", "position"],
        )
        self.proposals = counter(
            "drafthouse_speculation_proposals_total",
            "Sequences' steps in which drafts were wanted, by what was decided.",
            ["decision"],
        )
        self.draft_min_probability = gauge(
            "drafthouse_speculation_draft_min_probability_ratio",
            "Least that a draft cost in the last step, as the probability of being right that pays for it; 1 and more: "
            "none can.",
        )
        self.draft_cost_seconds = gauge(
            "drafthouse_speculation_draft_cost_seconds",
            "What a draft of the last step takes, as measured at the start and corrected by the steps since.",
        )
        self.token_worth_seconds = gauge(
            "drafthouse_speculation_token_worth_seconds",
            "What an accepted draft of the last step saves.",
        )
        self.step_cost_seconds = gauge(
            "drafthouse_step_cost_seconds",
            "Time of a step by its rows, as measured by the warm-up, without the reading of keys and values.",
            ["rows"],
        )
        self.context_token_cost_seconds = gauge(
            "drafthouse_context_token_cost_seconds",
            "Time that each committed token of a step's sequences adds to it, as measured by the warm-up.",
        )
        self.proposal_cost_seconds = gauge(
            "drafthouse_proposal_cost_seconds",
            "Time that asking for drafts adds to a step, by who is asked and for how many sequences.",
            ["proposal", "sequences"],
        )
        self.shard_up = gauge(
            "drafthouse_shard_up",
            "1 while the group serves, from its warm-up until one rank is lost; of all ranks the same.",
            ["rank"],
        )
        self.shard_restarts = counter(
            "drafthouse_shard_restarts_total", "Times the group of shards came back as a new one."
        )
        for status in REQUEST_STATUSES:
            self.requests.labels(status)
        for state in SEQUENCE_STATES:
            self.sequences.labels(state)
        for state in KV_BLOCK_STATES:
            self.kv_blocks.labels(state)
        for phase in Phase:
            self.step_duration_seconds.labels(phase.value)
        for decision in PROPOSAL_DECISIONS:
            self.proposals.labels(decision)

    def prepare(self, *, speculation_methods: Iterable[str], max_speculative_tokens: int) -> None:
        """Makes the series whose labels are known only once the shards have answered."""
        for method in speculation_methods:
            self.speculation_steps.labels(method)
            for position in range(1, max_speculative_tokens + 1):
                self.speculation_drafted_tokens.labels(method, str(position))
                self.speculation_accepted_tokens.labels(method, str(position))

    def show_costs(self, costs: StepCosts) -> None:
        """The tables of a session; those of the one before are gone."""
        self.step_cost_seconds.clear()
        self.proposal_cost_seconds.clear()
        for rows, seconds in costs.by_rows:
            self.step_cost_seconds.labels(str(rows)).set(seconds)
        for proposal, points in costs.by_proposal.items():
            for sequences, seconds in points:
                self.proposal_cost_seconds.labels(proposal.value, str(sequences)).set(seconds)
        self.context_token_cost_seconds.set(costs.per_context_token)

    def count_speculation(
        self, method: str, checked: Sequence[int], accepted: Sequence[int], *, num_sequences: int
    ) -> None:
        """What a step verified of one method's drafts, by depth from 1, of all sequences that had some."""
        self.speculation_steps.labels(method).inc(num_sequences)
        for depth, (num_checked, num_accepted) in enumerate(zip(checked, accepted, strict=True), start=1):
            if num_checked:
                self.speculation_drafted_tokens.labels(method, str(depth)).inc(num_checked)
            if num_accepted:
                self.speculation_accepted_tokens.labels(method, str(depth)).inc(num_accepted)
