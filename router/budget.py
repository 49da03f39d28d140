"""How much is drafted: for each step the prices of rows, and for each sequence whether it drafts at all and how far.

Pure and synchronous, one object per session. Must not know slots, blocks or how drafts are made.

A step of time t brings T tokens, so a token is worth t / T seconds, and a row costs what one more adds to t: little as
long as the step waits for memory, more behind that, and much where a product begins another tile. A draft brings its
probability of being accepted and costs a price, row / token. The prices of all further rows go to the shards with each
plan, and of all drafts of the step they propose so many of the most probable ones as bring most (they know how long a
match was, and how sure a head). Costs are those of now (router/current_costs.py). What shards do not know is told here
by the outcome: asking costs time too, and a sequence whose drafts do not bring it back is asked ever more rarely.

Prompts that wait fill every step, which a draft then makes longer by a row; a token that comes early saves what it
would have taken later: a row as well, and the reading of its context.
"""

import math
from collections.abc import Sequence as Sequence_
from dataclasses import dataclass, replace

from router.acceptance import Acceptance
from router.attempts import REVIEW_EVERY, Attempts
from router.current_costs import CurrentCosts, TakenStep
from router.plan import DraftPrice, SequenceResult
from router.proposal import Proposal
from router.sequence import Sequence
from router.step_costs import StepCosts

# What the wire calls drafts that came from heads alone: only these would be missing without heads.
HEADS_METHOD = "medusa"
# What is asked for must bring so much more than it costs: estimates err, and tokens that come early at the end of a
# sequence, beside others that go on, save nothing.
_MARGIN = 1.2
# At a price above this nobody is asked: even drafts that are surely right would save little of what asking risks.
_MAX_PRICE = 0.85


@dataclass(frozen=True, slots=True)
class BudgetConfig:
    """`methods` are some of those of draft_counts. With a `min_probability` the price is that, and whoever wants drafts
    is asked."""

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


class _Record:
    """What is kept of one sequence: what lookup brought, what heads brought beside it, and when it is asked again; for
    which proposal it was last weighed, and whether beside prompts that fill the step, and how far ahead drafts were
    worth their rows then."""

    __slots__ = ("attempts", "heads", "lookup", "weighed_for", "worth")

    def __init__(self, config: BudgetConfig, lookup: Acceptance | None = None, heads: Acceptance | None = None) -> None:
        self.lookup = Acceptance(config.lookup_methods, config.max_depth, lookup)
        self.heads = Acceptance((HEADS_METHOD,) if config.has_heads else (), config.max_depth, heads)
        self.attempts = Attempts()
        self.weighed_for = (Proposal.NONE, False)
        self.worth = 0


def _budget(costs: StepCosts | CurrentCosts, rows: int, *, step_s: float, token_s: float, row_s: float) -> StepBudget:
    """Of drafts beside `rows` rows; nobody is asked yet."""

    def price(draft_s: float) -> float:
        # Where rows cost nothing a token may be worth nothing.
        if draft_s <= 0:
            return 0.0
        return _MARGIN * draft_s / token_s if token_s > 0 else math.inf

    prices = tuple(DraftPrice(cost.first, price(cost.seconds)) for cost in costs.draft_costs(rows))
    return StepBudget(price(costs.least_draft_seconds(rows)), prices, step_s=step_s, token_s=token_s, row_s=row_s)


class BudgetController:
    def __init__(self, config: BudgetConfig, costs: StepCosts) -> None:
        self.config = config
        self.costs = costs
        self._current = CurrentCosts(costs)
        self._all = _Record(config)
        self._records: dict[int, _Record] = {}
        # What proposals brought since the last step began, not yet in the record of all; how many, and of heads.
        self._outcomes: list[Sequence_[int]] = []
        self._num_outcomes = self._num_of_heads = 0
        self._heads = Attempts()
        self._step = 0
        # Whether prompts filled the last step, which has prices of its own.
        self._is_full = False
        # As the last step that was weighed had them; 0: one of them is gone.
        self._num_sequences = 0
        # Who was asked in this step, and the part of each in what asking takes if one more is; None: not worked out.
        self._asked: list[_Record] = []
        self._cost_of_one_s: float | None = None
        self.budget = StepBudget()
        # Sequences' steps by what was decided for them, for the metrics.
        self.num_decisions = dict.fromkeys(("asked", "paused", "too_dear"), 0)

    # --- a step

    def begin_step(self, sequences: Sequence_[Sequence], *, full_rows: int = 0) -> StepBudget:
        """Settles price and proposers for a step of these sequences; `allow` is for each of them after that.

        `full_rows`: the rows of the step that will check the drafts, where prompts fill it; else 0.
        """
        self._step += 1
        was_full, self._is_full = self._is_full, full_rows > 0
        if self._is_quiet(len(sequences)) and not was_full and not self._is_full:
            return self.budget
        self._take_outcomes()
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
        self._cost_of_one_s = None
        return self.budget

    def _is_quiet(self, num_sequences: int) -> bool:
        """Nobody was asked, nobody came or went and nothing became known since the last step was weighed."""
        return (
            self._step % REVIEW_EVERY > 0
            and num_sequences == self._num_sequences
            and not self._asked
            and not self._num_outcomes
            and self.budget.proposal is not Proposal.HEADS
        )

    def _weigh(self, sequences: Sequence_[Sequence], wanting: list[Sequence], full_rows: int) -> StepBudget:
        self._num_sequences = len(sequences)
        context = sum(len(sequence.token_ids) for sequence in sequences)
        budget = self._price_full(full_rows, context) if full_rows else self._price(context)
        if budget.price > _MAX_PRICE:
            return budget
        return replace(budget, proposal=self._proposer(budget, wanting))

    def _price(self, context: int) -> StepBudget:
        """Beside the drafts that those bring who were asked in the step before."""
        before, number, costs = self.budget.proposal, self._num_sequences, self._current
        drafts, tokens = 0.0, float(number)
        for record in self._asked:
            drafts += record.lookup.rows
            tokens += record.lookup.gain
            if before is Proposal.HEADS:
                drafts += record.heads.rows
                tokens += record.heads.gain
        plain_s, drafts_s = costs.seconds(number, context), costs.draft_seconds(number, drafts)
        step_s = plain_s + costs.proposal_seconds(before, number, len(self._asked)) + (drafts_s if drafts else 0.0)
        # Never more than without drafts: else a step with too many of them would make tokens dear, and so drafts cheap.
        token_s = min(step_s / tokens, plain_s / number)
        return _budget(costs, number, step_s=step_s, token_s=token_s, row_s=drafts_s / max(1.0, drafts))

    def _price_full(self, full_rows: int, context: int) -> StepBudget:
        """Where prompts fill the step."""
        row_s = self.costs.draft_seconds(full_rows, 1)
        token_s = self.costs.draft_costs(full_rows)[-1].seconds
        token_s += self.costs.per_context_token * context / self._num_sequences
        step_s = self.costs.seconds(full_rows, context)
        return _budget(self.costs, full_rows, step_s=step_s, token_s=token_s, row_s=row_s)

    def _proposer(self, budget: StepBudget, wanting: list[Sequence]) -> Proposal:
        if self.config.has_heads:
            records = [self._record(sequence).heads for sequence in wanting]
            profit = sum(heads.gain * budget.token_s - heads.rows * budget.row_s for heads in records)
            cost_s = self._asking_s(Proposal.HEADS, len(wanting)) - self._asking_s(Proposal.LOOKUP, len(wanting))
            if self._heads.is_due(self._step, profit > _MARGIN * cost_s, cost_s / budget.step_s):
                return Proposal.HEADS
        return Proposal.LOOKUP if self.config.lookup_methods else Proposal.NONE

    def _asking_s(self, proposal: Proposal, num_asked: int) -> float:
        return self._current.proposal_seconds(proposal, self._num_sequences, num_asked)

    def allow(self, sequence: Sequence, room: int, share: int) -> tuple[int, int]:
        """Most drafts, and how far ahead, that are proposed for a sequence which wants `room` and may have `share`."""
        depth = min(sequence.num_speculative_tokens, self.config.max_depth, room, share)
        if depth <= 0:
            return 0, 0
        if self.budget.proposal is Proposal.NONE:
            self.num_decisions["too_dear"] += 1
            return 0, 0
        record = self._record(sequence)
        if record.attempts.rests(self._step):
            self.num_decisions["paused"] += 1
            return 0, 0
        if self.budget.step_s:
            if record.weighed_for != (kind := (self.budget.proposal, self._is_full)):
                record.weighed_for = kind
                record.attempts.note_news()
            if not (record.attempts.goes_on(self._step) or self._is_due(record)):
                self.num_decisions["paused"] += 1
                return 0, 0
            # A try looks as far as it may.
            depth = min(depth, record.worth or depth)
        self.num_decisions["asked"] += 1
        self._asked.append(record)
        self._cost_of_one_s = None
        # A tree that is less deep has one draft less for each level at least.
        size = self.config.tree_size - (self.config.max_depth - depth)
        return max(0, min(size, share)), depth

    def _is_due(self, record: _Record) -> bool:
        """Weighs it."""
        # Where nothing was ever right there is nothing to ask for.
        record.worth = self._depth(record)
        if (cost_s := self._cost_of_one_s) is None:
            num_asked = len(self._asked) + 1
            cost_s = self._cost_of_one_s = self._asking_s(Proposal.LOOKUP, num_asked) / num_asked
        pays = record.worth > 0 and self._pays(record, cost_s)
        return record.attempts.is_due(self._step, pays, cost_s / self.budget.step_s)

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
        self._current.observe(step)

    def observe(self, sequence: Sequence, asked: Proposal, result: SequenceResult) -> None:
        """A step checked what had been proposed for a sequence when `asked` were asked; they may have had nothing."""
        record = self._record(sequence)
        counts = (result.draft_counts,) if result.draft_counts else ()
        is_news = record.lookup.observe(counts)
        if asked is Proposal.HEADS:
            is_news |= record.heads.observe(counts)
            self._num_of_heads += 1
        if is_news:
            record.attempts.note_news()
        self._outcomes += counts
        self._num_outcomes += 1
        if result.accepted:
            record.attempts.note_success()

    def _take_outcomes(self) -> None:
        """Once a step, not once an outcome: what all brought changes little with each."""
        if self._num_outcomes:
            self._all.lookup.observe(self._outcomes, num_proposals=self._num_outcomes)
        if self._num_of_heads:
            self._all.heads.observe(self._outcomes, num_proposals=self._num_of_heads)
        self._outcomes.clear()
        self._num_outcomes = self._num_of_heads = 0

    def forget(self, sequence: Sequence) -> None:
        """It ended."""
        self._records.pop(sequence.seq_id, None)
        self._num_sequences = 0

    def _record(self, sequence: Sequence) -> _Record:
        record = self._records.get(sequence.seq_id)
        if record is None:
            record = _Record(self.config, self._all.lookup, self._all.heads)
            self._records[sequence.seq_id] = record
        return record
