"""The controller in simulation: a machine whose steps cost what they do, texts whose drafts are so right."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.acceptance import Acceptance
from router.attempts import REVIEW_EVERY
from router.budget import BudgetConfig, BudgetController, StepBudget
from router.current_costs import TakenStep
from router.draft_counts import METHODS
from router.plan import DraftPrice, SequenceResult
from router.proposal import Proposal
from router.sequence import Sequence
from router.step_costs import StepCost, StepCosts
from tests.router.simulated_shards import looked_up

K = 4
LOOKUP = BudgetConfig(max_depth=K, tree_size=K, methods=("ngram",))
HYBRID = BudgetConfig(max_depth=K, tree_size=16, methods=METHODS)
# Two cores: rows are nearly free up to four, then each takes its time. Milliseconds by rows.
CPU = {1: 10.5, 2: 11, 4: 13, 8: 20, 16: 33, 32: 60, 128: 220}
# Two cores whose memory is slow for the moment: rows are free up to eight, then each takes its time.
FREE_AT_FIRST = {1: 10.0, 8: 10.1, 9: 11.2, 16: 14.9, 17: 17.6, 32: 27.3, 64: 51.2, 128: 97}
# The same where it is fast: a row costs from the second on.
FAST_MEMORY = {1: 8.0, 2: 8.4, 4: 9.4, 8: 11.4, 16: 15.5, 32: 27.5, 64: 52, 128: 98}
# A device with arithmetic to spare.
GPU = {1: 6.0, 64: 6.2, 256: 7.0, 1024: 20.0}
# What asking heads adds for one sequence and for each more, in parts of a step of one; lookup takes a tenth of it.
ASKING_CPU, ASKING_GPU = (0.12, 0.025), (0.12, 0.003)


def costs_of(curve: dict[int, float]) -> StepCosts:
    measured = [StepCost(n, n, 0, Proposal.NONE, ms * 1e-3) for n, ms in curve.items()]
    # What it takes to check any drafts.
    measured.append(StepCost(1, 2, 0, Proposal.NONE, StepCosts(measured).seconds(2, 0) + 0.04e-3 * curve[1]))
    first, each = ASKING_GPU if curve is GPU else ASKING_CPU
    for proposal, part in ((Proposal.LOOKUP, 0.1), (Proposal.HEADS, 1.0)):
        measured += [
            StepCost(n, n, 0, proposal, ms * 1e-3, asking_ms * 1e-3)
            for n, ms in curve.items()
            if n <= 64
            for asking_ms in [part * (first + each * n) * curve[1]]
        ]
    return StepCosts(measured)


@dataclass
class Draft:
    """`p`: of being right, given that the drafts before it in its chain are; beside the chain, that it is right and
    the chain is not. `claimed`: what the shards believe of it and all before it."""

    method: str
    depth: int
    p: float
    claimed: float
    in_chain: bool = True


class Simulation:
    """Sequences whose step's drafts come with a true probability, which the shards know only roughly.

    A text's drafts are a chain; with heads there are others of the first place beside it, ever less probable.
    """

    def __init__(
        self,
        config: BudgetConfig,
        curve: dict[int, float],
        num_sequences: int,
        *,
        lookup: Callable[[int], float],
        heads: float = 0.0,
        seed: int = 0,
        new_tokens: int | None = None,
        measured: dict[int, float] | None = None,
    ) -> None:
        """`lookup`: by step, the probability that each looked-up token is right given those before; 0: it abstains.
        `new_tokens`: after which a sequence ends and another takes its place. `measured`: at the start, if not what
        steps cost now."""
        self.costs = costs_of(curve)
        self.controller = BudgetController(config, costs_of(measured or curve))
        self.sequences = [Sequence(i, [1] * 100, 100, 10_000, num_speculative_tokens=K) for i in range(num_sequences)]
        self.lookup, self.heads = lookup, heads
        self.new_tokens = new_tokens
        self.random = random.Random(seed)
        self.seconds = 0.0
        self.num_tokens = 0
        self.num_asked = 0
        self.budgets: list[StepBudget] = []
        self._pending: list[tuple[Proposal, list[Draft]]] = [(Proposal.NONE, [])] * num_sequences

    def run(self, steps: int) -> "Simulation":
        for number in range(steps):
            self._step(number)
        return self

    def _step(self, number: int) -> None:
        budget = self.controller.begin_step(self.sequences)
        self.budgets.append(budget)
        rows, asked, checked = 0, 0, self._pending
        self._pending = []
        for sequence, (proposal, drafts) in zip(self.sequences, checked, strict=True):
            size, depth = self.controller.allow(sequence, 1000, 96 // len(self.sequences))
            asked += size > 0
            rows += 1 + len(drafts)
            drafted = self._draft(number, budget.proposal, size, depth) if size else []
            self._pending.append((budget.proposal if size else Proposal.NONE, drafted))
            accepted = self._accepted(drafts)
            self.num_tokens += 1 + len(accepted)
            sequence.token_ids += [1] * (1 + len(accepted))
            if proposal is not Proposal.NONE:
                counts = self._counts(drafts, accepted) if drafts else []
                outcome = SequenceResult(0, [], [], len(drafts), len(accepted), counts)
                self.controller.observe(sequence, proposal, outcome)
        self._take_what_pays(budget.prices)
        if self.new_tokens:
            self._replace_ended(self.new_tokens)
        self.num_asked += asked
        asking_s = self.costs.proposal_seconds(budget.proposal, asked)
        seconds = self.costs.seconds(len(self.sequences), 0)
        if num_drafts := rows - len(self.sequences):
            seconds += self.costs.draft_seconds(len(self.sequences), num_drafts)
        # What others on the machine do to a step is not the controller's affair, but it sees no other times.
        seen = seconds * self.random.uniform(0.95, 1.05) + (0.02 if self.random.random() < 0.01 else 0)
        self.controller.observe_step(
            TakenStep(len(self.sequences), num_drafts, 0, budget.proposal, asked, seen, proposing_s=asking_s)
        )
        self.seconds += seconds + asking_s

    def _replace_ended(self, new_tokens: int) -> None:
        for index, sequence in enumerate(self.sequences):
            if sequence.num_generated_tokens >= new_tokens:
                self.controller.forget(sequence)
                self.sequences[index] = Sequence(
                    sequence.seq_id + 1000, [1] * 100, 100, 10_000, num_speculative_tokens=K
                )
                self._pending[index] = (Proposal.NONE, [])

    def _draft(self, number: int, proposal: Proposal, size: int, depth: int) -> list[Draft]:
        """A chain: looked up if there is a match, else by the heads; then what else heads say."""
        p, method = self.lookup(number), "ngram"
        if not p and proposal is Proposal.HEADS:
            p, method = self.heads, "medusa"
        drafts, claimed = [], 1.0
        for place in range(depth if p else 0):
            # The shards' estimate is off by up to a fifth.
            claimed *= min(1.0, p * self.random.uniform(0.8, 1.2))
            drafts.append(Draft(method, place + 1, p, claimed))
        if proposal is Proposal.HEADS:
            shares = [self.heads * 0.5 ** (i + 1) * (1 - p) for i in range(size)]
            drafts += [Draft("medusa", 1, q, q * self.random.uniform(0.8, 1.2), in_chain=False) for q in shares if q]
        return sorted(drafts, key=lambda draft: -draft.claimed)[:size]

    def _take_what_pays(self, prices: tuple[DraftPrice, ...]) -> None:
        """Of all drafts so many of the most probable ones as bring most, as the shards do."""
        everything = sorted((draft for _, drafts in self._pending for draft in drafts), key=lambda d: -d.claimed)
        gain = most = 0.0
        num_taken = 0
        for number, draft in enumerate(everything):
            gain += draft.claimed - [price for price in prices if price.first <= number][-1].probability
            if gain > most:
                num_taken, most = number + 1, gain
        taken = {id(draft) for draft in everything[:num_taken]}
        self._pending = [(asked, [d for d in drafts if id(d) in taken]) for asked, drafts in self._pending]

    def _accepted(self, drafts: list[Draft]) -> list[Draft]:
        accepted: list[Draft] = []
        for draft in (draft for draft in drafts if draft.in_chain):
            if self.random.random() >= draft.p:
                break
            accepted.append(draft)
        chance = self.random.random() * (1 - drafts[0].p if drafts and drafts[0].in_chain else 1)
        for draft in (draft for draft in drafts if not draft.in_chain and not accepted):
            chance -= draft.p
            if chance < 0:
                return [draft]
        return accepted

    @staticmethod
    def _counts(drafts: list[Draft], accepted: list[Draft]) -> list[int]:
        return [
            sum((draft.method, draft.depth) == (method, depth) for draft in some)
            for some in (drafts, accepted)
            for method in METHODS
            for depth in range(1, K + 1)
        ]

    @property
    def speed(self) -> float:
        return self.num_tokens / self.seconds

    @property
    def speed_without(self) -> float:
        return len(self.sequences) / self.costs.seconds(len(self.sequences), 0)


@pytest.mark.parametrize("curve", [CPU, FREE_AT_FIRST, GPU], ids=["cpu", "free at first", "gpu"])
@pytest.mark.parametrize("num_sequences", [1, 2, 4, 8, 16, 32, 64])
@pytest.mark.parametrize("probability", [0.0, 0.1, 0.3, 0.6, 0.9])
@pytest.mark.parametrize("config", [LOOKUP, HYBRID], ids=["lookup", "hybrid"])
def test_never_slower_than_without_drafts(
    config: BudgetConfig, probability: float, num_sequences: int, curve: dict[int, float]
) -> None:
    for heads in (0.0, 0.3, 0.6) if config.has_heads else (0.0,):
        simulation = Simulation(config, curve, num_sequences, lookup=lambda _: probability, heads=heads).run(400)
        assert simulation.speed >= 0.98 * simulation.speed_without


@pytest.mark.parametrize("curve", [CPU, FREE_AT_FIRST], ids=["cpu", "free at first"])
@pytest.mark.parametrize("num_sequences", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("probability", [0.0, 0.1, 0.3, 0.5])
def test_never_slower_where_answers_are_short_and_every_sequence_has_to_be_tried(
    probability: float, num_sequences: int, curve: dict[int, float]
) -> None:
    for heads in (0.0, 0.3, 0.5):
        simulation = Simulation(
            HYBRID, curve, num_sequences, lookup=lambda _: probability, heads=heads, new_tokens=64
        ).run(256)
        assert len(simulation.controller._records) <= num_sequences
        assert simulation.sequences[0].seq_id >= 1000
        assert simulation.speed >= 0.98 * simulation.speed_without


@pytest.mark.parametrize("num_sequences", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("probability", [0.0, 0.1, 0.3, 0.6])
@pytest.mark.parametrize(
    ("measured", "curve"), [(FREE_AT_FIRST, FAST_MEMORY), (FAST_MEMORY, FREE_AT_FIRST)], ids=["dearer", "cheaper"]
)
def test_never_slower_where_rows_cost_something_else_than_at_the_start(
    measured: dict[int, float], curve: dict[int, float], probability: float, num_sequences: int
) -> None:
    for heads in (0.0, 0.3, 0.6):
        simulation = Simulation(
            HYBRID, curve, num_sequences, lookup=lambda _: probability, heads=heads, measured=measured
        ).run(1000)
        assert simulation.speed >= 0.98 * simulation.speed_without


@pytest.mark.parametrize("seed", range(8))
def test_heads_that_all_but_pay_are_given_up_though_every_step_asks_them(seed: int) -> None:
    # Nothing tells dear drafts from a slow machine then; at first they were free.
    simulation = Simulation(
        HYBRID, FAST_MEMORY, 2, lookup=lambda _: 0.1, heads=0.6, measured=FREE_AT_FIRST, seed=seed
    ).run(1000)
    assert simulation.speed >= 0.98 * simulation.speed_without


def test_drafts_are_taken_where_they_pay_and_none_where_they_cannot() -> None:
    copies: Callable[[int], float] = lambda _: 0.95  # noqa: E731
    assert Simulation(LOOKUP, CPU, 1, lookup=copies).run(300).speed > 2 * 1e3 / CPU[1]
    # The arithmetic of 32 sequences is all that this machine has.
    full = Simulation(LOOKUP, CPU, 32, lookup=copies).run(100)
    assert full.num_asked == 0
    assert full.controller.num_decisions["too_dear"] == 32 * 100
    assert Simulation(LOOKUP, GPU, 32, lookup=copies).run(300).speed > 2 * 32e3 / GPU[64]


def test_a_text_on_which_nothing_is_accepted_is_tried_rarely_and_a_copy_in_it_is_found() -> None:
    def text(step: int) -> float:
        return 0.02 if step < 1000 else 0.95

    simulation = Simulation(LOOKUP, CPU, 1, lookup=text)
    simulation.run(1000)
    assert simulation.num_asked < 60
    before = simulation.num_tokens
    for number in range(1000, 1300):
        simulation._step(number)
    assert (simulation.num_tokens - before) / 300 > 2.5


def test_while_nobody_is_asked_prices_are_weighed_anew_at_reviews_only_or_when_somebody_comes_or_goes() -> None:
    simulation = Simulation(LOOKUP, CPU, 4, lookup=lambda _: 0.0).run(200)
    weighed = sum(after is not before for before, after in pairwise(simulation.budgets[100:]))
    # A review, the outcome of what it asked for, and the step after that.
    assert 100 / REVIEW_EVERY <= weighed <= 3 * 100 / REVIEW_EVERY + 2
    controller, sequences = simulation.controller, simulation.sequences
    newcomer = Sequence(10_000, [1, 2], 2, 50, num_speculative_tokens=K)

    def quiet() -> StepBudget:
        while controller._step % REVIEW_EVERY != 5:
            simulation._step(200)
        budget = controller.budget
        assert controller.begin_step(sequences) is budget
        return budget

    before = quiet()
    assert controller.begin_step([*sequences, newcomer]) is not before
    before = quiet()
    full = controller.begin_step(sequences, full_rows=256)
    assert full is not before
    # Its prices end with it.
    assert controller.begin_step(sequences) is not full
    before = quiet()
    controller.forget(newcomer)
    assert controller.begin_step(sequences) is not before


def test_heads_run_where_they_bring_more_than_they_take() -> None:
    good = Simulation(HYBRID, CPU, 1, lookup=lambda _: 0.0, heads=0.6).run(300)
    assert sum(budget.proposal is Proposal.HEADS for budget in good.budgets) > 250
    bad = Simulation(HYBRID, CPU, 1, lookup=lambda _: 0.0, heads=0.05).run(300)
    assert sum(budget.proposal is Proposal.HEADS for budget in bad.budgets) < 30


def test_a_fixed_probability_asks_always_whatever_it_costs() -> None:
    config = BudgetConfig(max_depth=K, tree_size=K, methods=("ngram",), min_probability=0.0)
    simulation = Simulation(config, CPU, 32, lookup=lambda _: 0.01).run(50)
    assert simulation.num_asked == 32 * 50
    assert all(budget.price == 0 for budget in simulation.budgets)


def test_who_wants_no_drafts_is_not_asked() -> None:
    controller = BudgetController(LOOKUP, costs_of(CPU))
    sequence = Sequence(0, [1, 2], 2, 50)
    assert controller.begin_step([sequence]).proposal is Proposal.NONE
    assert controller.allow(sequence, 10, 10) == (0, 0)


@settings(max_examples=50)
@given(st.floats(0, 1), st.integers(1, 40), st.integers(0, 20), st.integers(0, 20), st.integers(0, 99))
def test_budgets_keep_their_bounds(probability: float, num_sequences: int, room: int, share: int, seed: int) -> None:
    simulation = Simulation(HYBRID, CPU, num_sequences, lookup=lambda _: probability, heads=0.4, seed=seed).run(20)
    simulation.controller.begin_step(simulation.sequences)
    for sequence in simulation.sequences:
        size, depth = simulation.controller.allow(sequence, room, share)
        assert 0 <= depth <= size <= min(HYBRID.tree_size, share)
        assert depth <= min(room, K)
        assert (size > 0) == (depth > 0)


def test_the_price_is_smooth_in_the_number_of_sequences() -> None:
    prices = []
    for num_sequences in range(1, 33):
        simulation = Simulation(LOOKUP, CPU, num_sequences, lookup=lambda _: 0.8).run(100)
        prices.append(sum(budget.price for budget in simulation.budgets[50:]) / 50)
    assert all(after >= before - 0.1 for before, after in pairwise(prices))
    assert prices[0] < 0.5
    assert prices[-1] > 0.9


def test_where_prompts_fill_the_steps_a_token_saves_no_step_but_the_reading_of_its_context() -> None:
    def price(curve: dict[int, float], *, context: int, context_token_ms: float) -> float:
        measured = [
            StepCost(n, n, n * c, Proposal.NONE, (ms + n * c * context_token_ms) * 1e-3)
            for n, ms in curve.items()
            for c in (64, 1024)
        ]
        controller = BudgetController(LOOKUP, StepCosts(measured))
        sequences = [Sequence(i, [1] * context, context, 10_000, num_speculative_tokens=K) for i in range(2)]
        assert controller.begin_step(sequences).proposal is Proposal.LOOKUP
        budget = controller.begin_step(sequences, full_rows=256)
        assert (budget.proposal is Proposal.NONE) == (budget.price > 0.85)
        return budget.price

    assert price(CPU, context=256, context_token_ms=0.0013) > 0.85
    assert price(CPU, context=8192, context_token_ms=0.0013) < 0.3
    assert price(GPU, context=2048, context_token_ms=0.00004) < 0.3


@pytest.mark.parametrize("full_rows", [0, 256])
def test_where_rows_cost_nothing_every_draft_pays(full_rows: int) -> None:
    controller = BudgetController(LOOKUP, costs_of({1: 6.0, 64: 6.0}))
    budget = controller.begin_step([Sequence(0, [1], 1, 50, num_speculative_tokens=K)], full_rows=full_rows)
    assert budget.price == 0
    assert budget.proposal is Proposal.LOOKUP


def test_a_new_sequence_begins_with_what_the_others_know() -> None:
    everyone = Acceptance(("ngram",), 2)
    for _ in range(200):
        everyone.observe([looked_up([1, 2], 1, most_depth=2)])
    new = Acceptance(("ngram",), 2, everyone)
    assert new.gain == pytest.approx(1)
    assert new.rows == pytest.approx(2)
    assert new.probabilities[0] > 0.95
    assert new.probabilities[1] < 0.05
    for _ in range(40):
        new.observe([])
    assert new.gain < 0.3
    # Nothing was drafted, so nothing is known against the drafts themselves.
    assert new.probabilities[0] > 0.9
