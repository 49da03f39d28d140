"""The controller in simulation: a machine whose steps cost what they do, texts whose drafts are so right."""

import random
from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.acceptance import Acceptance
from router.budget import BudgetConfig, BudgetController, StepBudget
from router.plan import DraftCounts
from router.proposal import Proposal
from router.sequence import Sequence
from router.step_costs import StepCost, StepCosts

K = 4
LOOKUP = BudgetConfig(max_depth=K, tree_size=K, methods=("ngram",))
HYBRID = BudgetConfig(max_depth=K, tree_size=16, methods=("ngram", "medusa", "ngram_and_medusa"))
# Two cores: rows are nearly free up to four, then each takes its time. Milliseconds by rows.
CPU = {1: 10.5, 2: 11, 4: 13, 8: 20, 16: 33, 32: 60, 128: 220}
# A device with arithmetic to spare.
GPU = {1: 6.0, 64: 6.2, 256: 7.0, 1024: 20.0}
# What asking heads adds for one sequence and for each more, in parts of a step of one; lookup takes a tenth of it.
ASKING_CPU, ASKING_GPU = (0.12, 0.025), (0.12, 0.003)


def costs_of(curve: dict[int, float]) -> StepCosts:
    measured = [StepCost(n, n, 0, Proposal.NONE, ms * 1e-3) for n, ms in curve.items()]
    first, each = ASKING_CPU if curve is CPU else ASKING_GPU
    for proposal, part in ((Proposal.LOOKUP, 0.1), (Proposal.HEADS, 1.0)):
        measured += [
            StepCost(n, n, 0, proposal, (ms + part * (first + each * n) * curve[1]) * 1e-3)
            for n, ms in curve.items()
            if n <= 64
        ]
    return StepCosts(measured)


class Simulation:
    """Sequences whose step's drafts come with a true probability, which the shards know only roughly."""

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
    ) -> None:
        """`lookup`: by step, the probability that each looked-up token is right given those before; 0: it abstains.
        `new_tokens`: after which a sequence ends and another takes its place."""
        self.costs = costs_of(curve)
        self.controller = BudgetController(config, self.costs)
        self.sequences = [Sequence(i, [1] * 100, 100, 10_000, num_speculative_tokens=K) for i in range(num_sequences)]
        self.lookup, self.heads = lookup, heads
        self.new_tokens = new_tokens
        self.random = random.Random(seed)
        self.seconds = 0.0
        self.num_tokens = 0
        self.num_asked = 0
        self.budgets: list[StepBudget] = []
        self._pending: list[tuple[Proposal, list[tuple[str, float]]]] = [(Proposal.NONE, [])] * num_sequences

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
            self._pending.append((budget.proposal, self._draft(number, budget, size, depth) if size else []))
            if not size:
                self._pending[-1] = (Proposal.NONE, [])
            accepted = 0
            while accepted < len(drafts) and self.random.random() < drafts[accepted][1]:
                accepted += 1
            self.num_tokens += 1 + accepted
            sequence.token_ids += [1] * (1 + accepted)
            if proposal is not Proposal.NONE:
                self.controller.observe(sequence, proposal, self._counts(drafts, accepted))
        if self.new_tokens:
            self._replace_ended(self.new_tokens)
        self.num_asked += asked
        self.seconds += self.costs.seconds(rows, 0) + self.costs.proposal_seconds(budget.proposal, asked)

    def _replace_ended(self, new_tokens: int) -> None:
        for index, sequence in enumerate(self.sequences):
            if sequence.num_generated_tokens >= new_tokens:
                self.controller.forget(sequence)
                self.sequences[index] = Sequence(
                    sequence.seq_id + 1000, [1] * 100, 100, 10_000, num_speculative_tokens=K
                )
                self._pending[index] = (Proposal.NONE, [])

    def _draft(self, number: int, budget: StepBudget, size: int, depth: int) -> list[tuple[str, float]]:
        """A chain: looked up if there is a match, else by the heads, as far as a draft is worth its price."""
        p, method = self.lookup(number), "ngram"
        if not p and budget.proposal is Proposal.HEADS:
            p, method = self.heads, "medusa"
        drafts, path = [], 1.0
        for _ in range(min(size, depth) if p else 0):
            # The shards' estimate is off by up to a fifth.
            path *= p
            if path * self.random.uniform(0.8, 1.2) < budget.price:
                break
            drafts.append((method, p))
        return drafts

    @staticmethod
    def _counts(drafts: list[tuple[str, float]], accepted: int) -> list[DraftCounts]:
        if not drafts:
            return []
        places = range(K)
        drafted = [int(i < len(drafts)) for i in places]
        return [DraftCounts(drafts[0][0], drafted, [int(i < accepted) for i in places])]

    @property
    def speed(self) -> float:
        return self.num_tokens / self.seconds

    @property
    def speed_without(self) -> float:
        return len(self.sequences) / self.costs.seconds(len(self.sequences), 0)


@pytest.mark.parametrize("curve", [CPU, GPU], ids=["cpu", "gpu"])
@pytest.mark.parametrize("num_sequences", [1, 2, 4, 8, 16, 32, 64])
@pytest.mark.parametrize("probability", [0.0, 0.1, 0.3, 0.6, 0.9])
@pytest.mark.parametrize("config", [LOOKUP, HYBRID], ids=["lookup", "hybrid"])
def test_never_slower_than_without_drafts(
    config: BudgetConfig, probability: float, num_sequences: int, curve: dict[int, float]
) -> None:
    for heads in (0.0, 0.3, 0.6):
        simulation = Simulation(config, curve, num_sequences, lookup=lambda _: probability, heads=heads).run(400)
        assert simulation.speed >= 0.98 * simulation.speed_without


@pytest.mark.parametrize("num_sequences", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("probability", [0.0, 0.1, 0.3, 0.5])
def test_never_slower_where_answers_are_short_and_every_sequence_has_to_be_tried(
    probability: float, num_sequences: int
) -> None:
    for heads in (0.0, 0.3, 0.5):
        simulation = Simulation(
            HYBRID, CPU, num_sequences, lookup=lambda _: probability, heads=heads, new_tokens=64
        ).run(256)
        assert len(simulation.controller._records) <= num_sequences
        assert simulation.sequences[0].seq_id >= 1000
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
        everyone.observe([DraftCounts("ngram", [1, 1], [1, 0])])
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
