"""How much is drafted: for each step the prices of rows, and for each sequence whether it drafts at all and how far.

Pure and synchronous, one object per session. Must not know slots, blocks or how drafts are made.

A step of time t brings T tokens, so a token is worth t / T seconds, and a row costs what one more adds to t: little as
long as the step waits for memory, more behind that, and much where a product begins another tile. A draft brings its
probability of being accepted and costs a price, row / token. The prices of all further rows go to the shards with each
plan, and of all drafts of the step they propose so many of the most probable ones as bring most (they know how long a
match was, and how sure a head). Costs are what the shards measured at the start, corrected by what steps take since
(router/drift.py). What shards do not know is told here by the outcome: asking costs time too, and a
sequence whose drafts do not bring that time back is asked ever more rarely.

Prompts that wait fill every step, which a draft then makes longer by a row; a token that comes early saves what it
would have taken later: a row as well, and the reading of its context.
"""

import math
from collections.abc import Sequence as Sequence_
from dataclasses import dataclass

from router.acceptance import Acceptance
from router.drift import Drift, TakenStep
from router.plan import DraftCounts, DraftPrice
from router.proposal import Proposal
from router.sequence import Sequence
from router.step_costs import StepCosts

# What the wire calls drafts that came from heads alone: only these would be missing without heads.
HEADS_METHOD = "medusa"
# Proposals that a sequence, or the heads, may make before their outcome counts; half of them after an unexpected
# success.
_TRIAL = 3
# A trial is shorter where asking takes more than this part of a step.
_TRIAL_COST = 0.1
# Steps are counted, and a trial goes on at every so many of them: those of all sequences meet, because most of what
# asking costs is the same for one and for many.
_TRIAL_EVERY = 4
# Where asking did not pay the next try is at a multiple of so many steps, first and at last; the last is more where
# tries would otherwise take more than this part of the time.
_FIRST_EVERY, _LAST_EVERY, _TRIES_COST = 16, 64, 0.002
# What is asked for must bring so much more than it costs: estimates err, and tokens that come early at the end of a
# sequence, beside others that go on, save nothing.
_MARGIN = 1.2
# At a price above this nobody is asked: even drafts that are surely right would save little of what asking risks.
_MAX_PRICE = 0.85


@dataclass(frozen=True, slots=True)
class BudgetConfig:
    """`methods` as in DraftCounts. With a `min_probability` the price is that, and whoever wants drafts is asked."""

    max_depth: int = 0
    tree_size: int = 0
    methods: tuple[str, ...] = ()
    min_probability: float | None = None

    @property
    def has_heads(self) -> bool:
        return HEADS_METHOD in self.methods

    @property
    def lookup_methods(self) -> tuple[str, ...]:
        return tuple(method for method in self.methods if method != HEADS_METHOD)


@dataclass(frozen=True, slots=True)
class StepBudget:
    """`prices` of drafts, and what one costs at least where as many are taken as make it least: `price`; `proposal`:
    who is asked. In seconds, 0 where unknown: `step_s` the step, `token_s` what a token is worth, `row_s` what each of
    the rows costs that are expected."""

    price: float = 0.0
    prices: tuple[DraftPrice, ...] = ()
    proposal: Proposal = Proposal.NONE
    step_s: float = 0.0
    token_s: float = 0.0
    row_s: float = 0.0


class _Attempts:
    """When to ask somebody for drafts: while it pays; else now and then."""

    __slots__ = ("_every", "_pays", "_trial")

    def __init__(self) -> None:
        self._pays = True
        self._trial = float(_TRIAL)
        self._every = _FIRST_EVERY

    def is_due(self, step: int, pays: bool, cost: float) -> bool:
        """Asked at each step, by its number; `cost` is what asking takes, in steps."""
        self._pays = pays
        if pays:
            self._every = _FIRST_EVERY
        if pays or (self._trial > 0 and step % _TRIAL_EVERY == 0):
            self._trial = max(0.0, self._trial - max(1.0, cost / _TRIAL_COST))
            return True
        if self._trial > 0 or step % self._every:
            return False
        if self._every < max(_LAST_EVERY, cost / _TRIES_COST):
            self._every *= 2
        return True

    def note_success(self) -> None:
        """A try that was not expected to pay brought tokens, so it is worth some more."""
        if not self._pays:
            self._trial = max(self._trial, _TRIAL / 2)


class _Record:
    """What is kept of one sequence: what lookup brought, what heads brought beside it, and when it is asked again."""

    __slots__ = ("attempts", "heads", "lookup")

    def __init__(self, config: BudgetConfig, lookup: Acceptance | None = None, heads: Acceptance | None = None) -> None:
        self.lookup = Acceptance(config.lookup_methods, config.max_depth, lookup)
        self.heads = Acceptance((HEADS_METHOD,) if config.has_heads else (), config.max_depth, heads)
        self.attempts = _Attempts()


def _price(row_s: float, token_s: float) -> float:
    # Where rows cost nothing a token may be worth nothing.
    if row_s <= 0:
        return 0.0
    return _MARGIN * row_s / token_s if token_s > 0 else math.inf


class BudgetController:
    def __init__(self, config: BudgetConfig, costs: StepCosts) -> None:
        self.config = config
        self.costs = costs
        self._drift = Drift(costs)
        self._all = _Record(config)
        self._records: dict[int, _Record] = {}
        # What proposals brought since the last step began, not yet in the record of all; by who was asked, how many.
        self._outcomes: list[DraftCounts] = []
        self._num_outcomes = {Proposal.LOOKUP: 0, Proposal.HEADS: 0}
        self._heads = _Attempts()
        self._step = self._num_sequences = 0
        # Who was asked in this step.
        self._asked: list[_Record] = []
        self.budget = StepBudget()
        # Sequences' steps by what was decided for them, for the metrics.
        self.num_decisions = dict.fromkeys(("asked", "paused", "too_dear"), 0)

    # --- a step

    def begin_step(self, sequences: Sequence_[Sequence], *, full_rows: int = 0) -> StepBudget:
        """Settles price and proposers for a step of these sequences; `allow` is for each of them after that.

        `full_rows`: the rows of the step that will check the drafts, where prompts fill it; else 0.
        """
        self._take_outcomes()
        self._step += 1
        wanting = [sequence for sequence in sequences if sequence.num_speculative_tokens]
        if not wanting or not self.config.max_depth:
            self.budget = StepBudget()
        elif self.config.min_probability is not None or not self.costs.is_known:
            asked = Proposal.HEADS if self.config.has_heads else Proposal.LOOKUP
            price = self.config.min_probability or 0.0
            self.budget = StepBudget(price, (DraftPrice(0, price),), proposal=asked)
        else:
            self.budget = self._weigh(sequences, wanting, full_rows)
        self._asked.clear()
        return self.budget

    def _weigh(self, sequences: Sequence_[Sequence], wanting: list[Sequence], full_rows: int) -> StepBudget:
        self._num_sequences = len(sequences)
        before, rows, tokens = self.budget.proposal, float(len(sequences)), float(len(sequences))
        context = sum(len(sequence.token_ids) for sequence in sequences)
        for record in self._asked:
            rows += record.lookup.rows
            tokens += record.lookup.gain
            if before is Proposal.HEADS:
                rows += record.heads.rows
                tokens += record.heads.gain
        first_row = full_rows or len(sequences)
        num_drafts = 0.0 if full_rows else rows - first_row
        more_s = 0.0 if full_rows else self._drift.draft_seconds(len(sequences))
        plain_s = self.costs.seconds(first_row, context) * (1.0 if full_rows else self._drift.pace(len(sequences)))
        drafts_s = max(0.0, self.costs.draft_seconds(first_row, num_drafts) + more_s * max(1.0, num_drafts))
        row_s = drafts_s / max(1.0, num_drafts)
        step_s = plain_s + self._proposal_s(before, len(self._asked)) + (drafts_s if num_drafts else 0.0)
        costs = self.costs.draft_costs(first_row)
        if full_rows:
            token_s = costs[-1].seconds + self.costs.per_context_token * context / len(sequences)
        else:
            # Never more than without drafts: else a step with too many of them would make tokens dear, and so drafts
            # cheap.
            token_s = min(step_s / tokens, plain_s / len(sequences))
        prices = tuple(DraftPrice(cost.first, _price(cost.seconds + more_s, token_s)) for cost in costs)
        # On average they cost least where some stretch of equal ones ends, or at the end of the last.
        averages = [self.costs.draft_seconds(first_row, cost.first) / cost.first for cost in costs[1:]]
        price = _price(min(*averages, costs[-1].seconds) + more_s, token_s)
        if price > _MAX_PRICE:
            return StepBudget(price, prices, Proposal.NONE, step_s, token_s, row_s)
        proposal = Proposal.LOOKUP if self.config.lookup_methods else Proposal.NONE
        if self.config.has_heads:
            records = [self._record(sequence).heads for sequence in wanting]
            profit = sum(heads.gain for heads in records) * token_s - sum(heads.rows for heads in records) * row_s
            cost = self._proposal_s(Proposal.HEADS, len(wanting)) - self._proposal_s(Proposal.LOOKUP, len(wanting))
            if self._heads.is_due(self._step, profit > _MARGIN * cost, cost / step_s):
                proposal = Proposal.HEADS
        return StepBudget(price, prices, proposal, step_s, token_s, row_s)

    def allow(self, sequence: Sequence, room: int, share: int) -> tuple[int, int]:
        """Most drafts, and how far ahead, that are proposed for a sequence which wants `room` and may have `share`."""
        depth = min(sequence.num_speculative_tokens, self.config.max_depth, room, share)
        if depth <= 0:
            return 0, 0
        if self.budget.proposal is Proposal.NONE:
            self.num_decisions["too_dear"] += 1
            return 0, 0
        record = self._record(sequence)
        if self.budget.step_s:
            # Where nothing was ever right there is nothing to ask for; a try looks as far as it may.
            worth, num_asked = self._depth(record), len(self._asked) + 1
            cost_s = self._proposal_s(Proposal.LOOKUP, num_asked) / num_asked
            if not record.attempts.is_due(
                self._step, worth > 0 and self._pays(record, cost_s), cost_s / self.budget.step_s
            ):
                self.num_decisions["paused"] += 1
                return 0, 0
            depth = min(depth, worth or depth)
        self.num_decisions["asked"] += 1
        self._asked.append(record)
        # A tree that is less deep has one draft less for each level at least.
        size = self.config.tree_size - (self.config.max_depth - depth)
        return max(0, min(size, share)), depth

    def _proposal_s(self, proposal: Proposal, num_asked: int) -> float:
        """Of asking for drafts of so many of the step's sequences."""
        if not num_asked:
            return 0.0
        more_s = self._drift.proposal_seconds(proposal, self._num_sequences)
        return max(0.0, self.costs.proposal_seconds(proposal, num_asked) + more_s)

    def _pays(self, record: _Record, cost_s: float) -> bool:
        """Where heads run for all anyway, a sequence has only its rows to pay for."""
        budget = self.budget
        profit = record.lookup.gain * budget.token_s - record.lookup.rows * budget.row_s
        if budget.proposal is Proposal.HEADS:
            return profit + record.heads.gain * budget.token_s > record.heads.rows * budget.row_s
        return profit > _MARGIN * cost_s

    def _depth(self, record: _Record) -> int:
        """As far ahead as drafts of this sequence were worth their rows."""
        with_heads = self.budget.proposal is Proposal.HEADS
        for depth in range(self.config.max_depth, 0, -1):
            if record.lookup.probabilities[depth - 1] >= self.budget.price:
                return depth
            if with_heads and record.heads.probabilities[depth - 1] >= self.budget.price:
                return depth
        return 0

    # --- its outcome

    def observe_step(self, step: TakenStep | None) -> None:
        """The next step is over; None: it had prompts."""
        self._drift.observe(step)

    def observe(self, sequence: Sequence, asked: Proposal, counts: list[DraftCounts]) -> None:
        """A step checked what had been proposed for a sequence when `asked` were asked; they may have had nothing."""
        record = self._record(sequence)
        record.lookup.observe(counts)
        if asked is Proposal.HEADS:
            record.heads.observe(counts)
        self._outcomes += counts
        self._num_outcomes[asked] += 1
        if any(sum(one.accepted) for one in counts):
            record.attempts.note_success()

    def _take_outcomes(self) -> None:
        """Once a step, not once an outcome: what all brought changes little with each."""
        if num_proposals := sum(self._num_outcomes.values()):
            self._all.lookup.observe(self._outcomes, num_proposals=num_proposals)
        if num_heads := self._num_outcomes[Proposal.HEADS]:
            self._all.heads.observe(self._outcomes, num_proposals=num_heads)
        self._outcomes.clear()
        self._num_outcomes = dict.fromkeys(self._num_outcomes, 0)

    def forget(self, sequence: Sequence) -> None:
        """It ended."""
        self._records.pop(sequence.seq_id, None)

    def _record(self, sequence: Sequence) -> _Record:
        record = self._records.get(sequence.seq_id)
        if record is None:
            record = _Record(self.config, self._all.lookup, self._all.heads)
            self._records[sequence.seq_id] = record
        return record
