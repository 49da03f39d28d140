"""What a step does on the device: forward, choose, verify, commit, propose.

    forward through the sharded model -> logits of this rank's vocabulary slice -> rank 0 chooses the token after each
    row and verifies the drafts -> broadcast -> every rank commits tokens, keys and values
    -> the heads, if there are any, guess from the last accepted row -> rank 0 drafts -> broadcast

Without heads the drafts travel with the decision. Where states are not readable no value is looked at, so that which
operations run, and on how much, follows from StepRows and StepKind alone: such a step can be captured. Must not know of
plans, gRPC, sessions or what a block means to the router.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from shard.clock import Timer
from shard.cuda.kernels import attention_for
from shard.decision import Committed, Decision, decide, receive, send
from shard.distributed import TPGroup
from shard.forward_batch import ForwardBatch
from shard.kv_cache import KVCache
from shard.layout import RowNumbers, StepLayout, StepRows, lay_out
from shard.report import Outcome
from shard.sampler import SamplingRows, choose_tokens
from shard.speculation import Candidates, DraftTree, Proposal, Yielded
from shard.speculation.drafter import Drafter
from shard.speculation.prices import Prices
from shard.states import SequenceStates


class Model(Protocol):
    @property
    def vocab_start(self) -> int: ...

    def forward(self, batch: ForwardBatch, cache: KVCache, on_launch: Callable[[], None]) -> Tensor: ...

    def logits(self, hidden: Tensor) -> Tensor: ...


class Heads(Protocol):
    def candidates(self, hidden: Tensor, width: int) -> Candidates:
        """Guesses from hidden states [S, hidden]; a collective, equal on all ranks."""


@dataclass(frozen=True, slots=True)
class StepKind:
    """What the host knows of a step beside its rows: whom it asks for drafts, nobody where no sequence wants any, and
    what any sequence's tokens need."""

    proposal: Proposal
    any_sampled: bool
    any_filtered: bool
    any_logprobs: bool


@dataclass(frozen=True, slots=True)
class StepInputs:
    """Numbers of a step on the device. `filtered` are rows of M (see RowNumbers) among which are all with a filter."""

    numbers: RowNumbers[Tensor]
    filtered: Tensor | None
    prices: Prices


class DeviceStep:
    """Called by one thread, the same on all ranks; in inference mode."""

    def __init__(
        self,
        *,
        model: Model,
        vocab_size: int,
        cache: KVCache,
        states: SequenceStates,
        group: TPGroup,
        drafter: Drafter | None,
        heads: Heads | None = None,
    ) -> None:
        """`drafter` is the same on all ranks and works on rank 0; None: no speculation."""
        self._model = model
        self.vocab_size = vocab_size
        self.cache = cache
        self.states = states
        self.group = group
        self.drafter = drafter
        self._heads = heads

    def run(
        self,
        rows: StepRows,
        kind: StepKind,
        inputs: StepInputs,
        timer: Timer,
        on_launch: Callable[[], None] = lambda: None,
    ) -> Outcome | None:
        """None: nobody was to get a token. `timer` runs where drafts are made; `on_launch` is called where the layers
        begin."""
        layout = lay_out(rows, inputs.numbers, self.states)
        batch = self._batch(rows, layout)
        hidden = self._model.forward(batch, self.cache, on_launch)
        if not len(layout.cells):
            return None
        if layout.num_step_rows < len(hidden):
            # Of a prompt's rows the last one's.
            hidden = hidden[layout.numbers.logit_rows]
        sampling = self._sampling_rows(layout, kind, inputs.filtered)
        chosen = choose_tokens(
            self._model.logits(hidden),
            vocab_start=self._model.vocab_start,
            vocab_size=self.vocab_size,
            rows=sampling,
            group=self.group,
        )
        looks_up = kind.proposal is Proposal.LOOKUP
        counts = None
        if self.group.rank == 0:
            committed, counts = self._decide(layout, chosen.token_ids, inputs.prices if looks_up else None, timer)
        else:
            committed = self._receive(layout, looks_up)
        decision = committed.decision
        self._commit_cache(layout, batch, decision)
        if kind.proposal is Proposal.HEADS:
            with timer.running():
                self._draft_with_heads(layout, inputs.prices, decision, hidden)
        logprobs = None if chosen.logprobs is None else chosen.logprobs[layout.cells.gather(1, decision.path)]
        return Outcome(committed, logprobs, counts)

    def _batch(self, rows: StepRows, layout: StepLayout) -> ForwardBatch:
        states, cache = self.states, self.cache
        if not states.is_readable and attention_for(cache.dtype, cache.device):
            spans = layout.device_spans(states)
            return ForwardBatch.of_device_spans(layout.token_ids, spans, layout.num_step_rows, cache)
        return ForwardBatch.build(
            token_ids=layout.token_ids,
            positions=layout.positions,
            spans=rows.spans(states),
            cache=cache,
            ancestors=layout.ancestors,
        )

    def _sampling_rows(self, layout: StepLayout, kind: StepKind, filtered: Tensor | None) -> SamplingRows:
        if not kind.any_sampled:
            return SamplingRows.greedy(any_logprobs=kind.any_logprobs)
        states, slots, rows = self.states, layout.numbers.logit_slots, layout.numbers.logit_rows
        return SamplingRows(
            temperature=states.temperature[slots],
            top_k=states.top_k[slots],
            top_p=states.top_p[slots],
            min_p=states.min_p[slots],
            seed=states.seed[slots],
            # The token that follows the row's.
            position=layout.positions[rows] + 1,
            any_sampled=True,
            filtered=filtered,
            any_logprobs=kind.any_logprobs,
        )

    def _decide(
        self, layout: StepLayout, token_ids: Tensor, prices: Prices | None, timer: Timer
    ) -> tuple[Committed, Tensor | None]:
        """Rank 0: the decision, committed and sent, and the counts of drafts by method (see Drafter.learn). With
        `prices` lookup is asked for drafts."""
        committed = decide(self.states, layout, token_ids, self._depth(layout))
        decision = committed.decision
        counts, message = None, [*decision]
        if self.drafter is not None:
            counts = self.drafter.learn(
                layout.numbers.slots,
                layout.num_decoding,
                Yielded(
                    token_ids=decision.token_ids,
                    num_emitted=decision.num_emitted,
                    parents=layout.parents,
                    on_path=layout.on_path,
                    path=decision.path,
                    num_accepted=decision.num_accepted,
                    num_checked=decision.num_checked,
                ),
            )
            if prices is not None:
                with timer.running():
                    message += self._draft(self.drafter, layout, prices, None)
        send(self.group, message)
        return committed, counts

    def _receive(self, layout: StepLayout, looks_up: bool) -> Committed:
        """The other ranks: rank 0's decision, committed."""
        states, slots = self.states, layout.numbers.slots
        shapes = Decision.shapes(len(slots), self._depth(layout))
        num_shapes = len(shapes)
        if self.drafter is not None and looks_up:
            shapes += DraftTree.shapes(len(layout.numbers.proposing), self.drafter.sizes.tree_size)
        tensors = receive(self.group, shapes, states.device)
        decision = Decision(*tensors[:num_shapes])
        states.append(slots, decision.token_ids, decision.num_emitted, decision.finished.bool())
        if len(shapes) > num_shapes:
            states.set_drafts(slots[layout.numbers.proposing], DraftTree(*tensors[num_shapes:]))
        return Committed(decision, states.num_tokens.index_select(0, slots))

    def _depth(self, layout: StepLayout) -> int:
        """The most tokens that a sequence of this step can emit."""
        deepest = self.drafter.sizes.num_speculative_tokens if self.drafter is not None else 0
        return min(layout.cells.shape[1], 1 + deepest)

    def _draft_with_heads(self, layout: StepLayout, prices: Prices, decision: Decision, hidden: Tensor) -> None:
        """All ranks: the heads guess from the row behind which the last token came, `hidden` [M, size]."""
        assert self._heads is not None
        assert self.drafter is not None
        proposing, sizes = layout.numbers.proposing, self.drafter.sizes
        last = (decision.num_emitted[proposing] - 1).clamp_min(0)[:, None]
        rows = layout.cells[proposing].gather(1, decision.path[proposing].gather(1, last))[:, 0]
        candidates = self._heads.candidates(hidden[rows], sizes.tree_width)
        if self.group.rank == 0:
            tree = self._draft(self.drafter, layout, prices, candidates)
            send(self.group, [*tree])
        else:
            shapes = DraftTree.shapes(len(proposing), sizes.tree_size)
            tree = DraftTree(*receive(self.group, shapes, self.states.device))
            self.states.set_drafts(layout.numbers.slots[proposing], tree)

    def _draft(self, drafter: Drafter, layout: StepLayout, prices: Prices, candidates: Candidates | None) -> DraftTree:
        """Rank 0: trees for the sequences that propose, made pending."""
        numbers = layout.numbers
        return drafter.propose(
            self.states,
            candidates,
            prices,
            slots=numbers.slots,
            proposing=numbers.proposing,
            max_drafts=numbers.max_drafts,
            max_depth=numbers.max_depth,
        )

    def _commit_cache(self, layout: StepLayout, batch: ForwardBatch, decision: Decision) -> None:
        """Moves keys and values of the rows whose input was right from the step buffer to their blocks.

        A sequence that emitted e tokens had e right inputs: the rows on its path after which they came.
        """
        count = layout.num_decoding
        if not count:
            return
        path, emitted = decision.path[:count], decision.num_emitted[:count]
        if batch.paged is not None:
            self.cache.commit_paths(batch.paged, path, emitted, batch.physical_slots)
        else:
            first_rows, num_rows = layout.numbers.first_rows[:count], layout.numbers.num_rows[:count]
            self.cache.commit_spans(first_rows, num_rows, path, emitted, batch.physical_slots)
