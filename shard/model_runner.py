"""Runs steps: forward, choose, verify, commit, propose. Owns the states and the cache; called by one thread.

A step on every rank:

    forward through the sharded model -> logits of this rank's vocabulary slice -> rank 0 chooses the token after each
    row and verifies the drafts -> broadcast -> every rank commits tokens, keys and values
    -> the heads, if there are any, guess from the last accepted row -> rank 0 drafts -> broadcast

Without heads the drafts travel with the decision. Must not know of gRPC, sessions or what a block means to the router.
"""

import hashlib
from collections.abc import Callable
from functools import partial
from itertools import accumulate
from typing import Protocol

import torch
from torch import Tensor

from shard.clock import StepClock
from shard.decision import Decision, receive, send
from shard.distributed import TPGroup
from shard.forward_batch import ForwardBatch
from shard.host_copy import integers
from shard.kv_cache import KVCache
from shard.layout import StepLayout, lay_out
from shard.plan import StepPlan, StepResult
from shard.report import Outcome, report, update_digest
from shard.sampler import SamplingRows, choose_tokens
from shard.speculation import Candidates, DraftTree, Proposal
from shard.speculation.drafter import Drafter
from shard.speculation.verify import verify
from shard.states import SequenceStates

_NOTHING = slice(0, 0)


def _nothing() -> None:
    pass


class Model(Protocol):
    @property
    def vocab_start(self) -> int: ...

    def forward(self, batch: ForwardBatch, cache: KVCache, on_launch: Callable[[], None]) -> Tensor: ...

    def logits(self, hidden: Tensor) -> Tensor: ...


class Heads(Protocol):
    def candidates(self, hidden: Tensor, width: int) -> Candidates:
        """Guesses from hidden states [S, hidden]; a collective, equal on all ranks."""


class ModelRunner:
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
        self._vocab_size = vocab_size
        self._cache = cache
        self.states = states
        self._group = group
        self._drafter = drafter
        self._heads = heads
        self._digest = hashlib.blake2b(digest_size=8)

    def reset(self) -> None:
        """Forgets every sequence. Cache contents need no clearing: nothing reads a block that was not written."""
        self.states.reset()
        if self._drafter is not None:
            self._drafter.reset()
        self._digest = hashlib.blake2b(digest_size=8)

    def execute(self, plan: StepPlan) -> StepResult:
        return self.launch(plan)()

    @torch.inference_mode()
    def launch(self, plan: StepPlan, on_launch: Callable[[], None] = _nothing) -> Callable[[], StepResult]:
        """Gives the device a step. What is returned waits until it is done there, and is to be called once, in the
        order of the steps; the next step may be launched before.

        `on_launch` is called where the device has all it needs, or (CPU) where the layers begin: the interpreter is
        free for a while.
        """
        clock = StepClock(self.states.device)
        # Where nothing is waited for everything is launched at once; else the layers take the time.
        is_asynchronous = not self.states.is_readable
        self.states.begin_step(plan.released_slots, plan.new_sequences, plan.sequences)
        if self._drafter is not None and plan.new_sequences:
            self._drafter.begin([new.slot for new in plan.new_sequences])
        layout = lay_out(plan.sequences, self.states)
        outcome = self._run(layout, plan, clock, _nothing if is_asynchronous else on_launch) if layout else None
        if outcome is not None:
            outcome = outcome.to_host()
        clock.stop()
        if is_asynchronous:
            on_launch()
        return partial(self._finish, plan.step_id, outcome, clock)

    def _finish(self, step_id: int, outcome: Outcome | None, clock: StepClock) -> StepResult:
        duration_ns = clock.duration_ns()
        if outcome is not None:
            update_digest(self._digest, outcome)
        self._digest.update(step_id.to_bytes(8, "little"))
        digest = int.from_bytes(self._digest.digest(), "little")
        results = report(outcome) if outcome is not None and self._group.rank == 0 else []
        return StepResult(step_id, results, digest, duration_ns, clock.proposing_ns())

    def _run(
        self, layout: StepLayout, plan: StepPlan, clock: StepClock, on_launch: Callable[[], None]
    ) -> Outcome | None:
        """None: nobody was to get a token."""
        batch = ForwardBatch.build(
            token_ids=layout.token_ids,
            positions=layout.positions,
            spans=layout.spans,
            cache=self._cache,
            ancestors=layout.ancestors,
        )
        hidden = self._model.forward(batch, self._cache, on_launch)
        if not layout.sequences:
            return None
        rows = self._sampling_rows(layout)
        hidden = hidden[layout.logit_rows]
        chosen = choose_tokens(
            self._model.logits(hidden),
            vocab_start=self._model.vocab_start,
            vocab_size=self._vocab_size,
            rows=rows,
            group=self._group,
        )
        if self._group.rank == 0:
            decision, counts = self._decide(layout, plan, clock, chosen.token_ids)
        else:
            decision, counts = self._receive(layout, plan), None
        self._commit_cache(layout, batch, decision)
        if plan.proposal is Proposal.HEADS and layout.proposing.numel():
            with clock.proposing():
                self._draft_with_heads(layout, plan, decision, hidden)
        logprobs = chosen.logprobs[layout.cells.gather(1, decision.path)] if rows.any_logprobs else None
        return Outcome(layout.sequences, decision, self.states.num_tokens[layout.slots], logprobs, counts)

    def _sampling_rows(self, layout: StepLayout) -> SamplingRows:
        states = self.states
        sampling = [host.new.sampling for host in layout.host_slots]
        any_sampled = any(s.is_sampled for s in sampling)
        # Where all are greedy nobody looks at the parameters.
        slots, rows = (layout.logit_slots, layout.logit_rows) if any_sampled else (_NOTHING, _NOTHING)
        return SamplingRows(
            temperature=states.temperature[slots],
            top_k=states.top_k[slots],
            top_p=states.top_p[slots],
            min_p=states.min_p[slots],
            seed=states.seed[slots],
            # The token that follows the row's.
            position=layout.positions[rows] + 1,
            any_sampled=any_sampled,
            filtered_rows=[row for row, s in enumerate(sampling) if s.is_filtered],
            any_logprobs=any(host.new.logprobs for host in layout.host_slots),
        )

    def _decide(
        self, layout: StepLayout, plan: StepPlan, clock: StepClock, token_ids: Tensor
    ) -> tuple[Decision, Tensor | None]:
        """Rank 0: the decision, committed and sent, and the counts of drafts by method (see Drafter.counts)."""
        states, slots = self.states, layout.slots
        verdict = verify(
            token_ids[layout.cells],
            layout.drafts,
            layout.parents,
            layout.on_path,
            num_drafts=layout.num_drafts,
            num_tokens=states.num_tokens[slots],
            max_num_tokens=states.max_num_tokens[slots],
            stop_token_ids=states.stop_token_ids[slots],
        )
        depth = self._depth(layout)
        decision = Decision(
            token_ids=verdict.token_ids[:, :depth],
            path=verdict.path[:, :depth],
            num_emitted=verdict.num_emitted,
            num_accepted=verdict.num_accepted,
            num_checked=layout.num_drafts,
            finished=verdict.finished.long(),
        )
        states.append(slots, decision.token_ids, decision.num_emitted, verdict.finished)
        counts, message = None, [*decision]
        if self._drafter is not None:
            counts = self._learn(self._drafter, layout, decision)
            if plan.proposal is Proposal.LOOKUP and layout.proposing.numel():
                with clock.proposing():
                    tree = self._draft(self._drafter, layout, plan, None)
                    states.set_drafts(slots[layout.proposing], tree)
                message += tree
        send(self._group, message)
        return decision, counts

    def _receive(self, layout: StepLayout, plan: StepPlan) -> Decision:
        """The other ranks: rank 0's decision, committed."""
        states, slots = self.states, layout.slots
        shapes = Decision.shapes(len(slots), self._depth(layout))
        num_shapes = len(shapes)
        if self._drafter is not None and plan.proposal is Proposal.LOOKUP and layout.proposing.numel():
            shapes += DraftTree.shapes(len(layout.proposing), self._drafter.sizes.tree_size)
        tensors = receive(self._group, shapes, states.device)
        decision = Decision(*tensors[:num_shapes])
        states.append(slots, decision.token_ids, decision.num_emitted, decision.finished.bool())
        if len(shapes) > num_shapes:
            states.set_drafts(slots[layout.proposing], DraftTree(*tensors[num_shapes:]))
        return decision

    def _depth(self, layout: StepLayout) -> int:
        """The most tokens that a sequence of this step can emit."""
        deepest = self._drafter.sizes.num_speculative_tokens if self._drafter is not None else 0
        return min(layout.cells.shape[1], 1 + deepest)

    def _learn(self, drafter: Drafter, layout: StepLayout, decision: Decision) -> Tensor | None:
        decoding = layout.slots[: layout.num_decoding]
        if drafter.has_pending:
            drafter.observe(
                decoding, decision.token_ids[: layout.num_decoding], decision.num_emitted[: layout.num_decoding]
            )
        if layout.on_path is None:
            return None
        depth = layout.on_path.sum(2)[:, 1:] - 1
        rows = torch.arange(decision.path.shape[1], device=depth.device)
        # Where nothing was accepted the mark falls on the root.
        accepted_rows = torch.where(rows <= decision.num_accepted[:, None], decision.path, 0)
        is_accepted = torch.zeros_like(layout.cells, dtype=torch.bool).scatter_(1, accepted_rows, True)[:, 1:]
        return drafter.counts(layout.slots, depth, is_accepted, decision.num_checked)

    def _draft_with_heads(self, layout: StepLayout, plan: StepPlan, decision: Decision, hidden: Tensor) -> None:
        """All ranks: the heads guess from the row behind which the last token came, `hidden` [M, size]."""
        assert self._heads is not None
        assert self._drafter is not None
        proposing, sizes = layout.proposing, self._drafter.sizes
        last = (decision.num_emitted[proposing] - 1).clamp_min(0)[:, None]
        rows = layout.cells[proposing].gather(1, decision.path[proposing].gather(1, last))[:, 0]
        candidates = self._heads.candidates(hidden[rows], sizes.tree_width)
        if self._group.rank == 0:
            tree = self._draft(self._drafter, layout, plan, candidates)
            send(self._group, [*tree])
        else:
            shapes = DraftTree.shapes(len(proposing), sizes.tree_size)
            tree = DraftTree(*receive(self._group, shapes, self.states.device))
        self.states.set_drafts(layout.slots[proposing], tree)

    def _draft(self, drafter: Drafter, layout: StepLayout, plan: StepPlan, candidates: Candidates | None) -> DraftTree:
        """Rank 0: trees for the sequences that propose."""
        states, slots = self.states, layout.slots[layout.proposing]
        num_tokens = states.num_tokens[slots]
        # Of the tokens still wanted, the last one is never a draft's: a step always brings one of its own.
        room = (states.max_num_tokens[slots] - num_tokens - 1).clamp_min(0)
        max_depth = torch.where(states.finished[slots], 0, torch.minimum(layout.max_depth, room))
        max_drafts = torch.where(max_depth > 0, layout.max_drafts, 0)
        longest = None
        if states.is_readable:
            if not max_drafts.any():
                return DraftTree.empty(len(slots), drafter.sizes.tree_size, states.device)
            longest = int(num_tokens.max())
        return drafter.draft(
            states.token_ids[slots, :longest],
            candidates,
            slots=slots,
            num_tokens=num_tokens,
            max_drafts=max_drafts,
            max_depth=max_depth,
            prices=plan.draft_prices,
        )

    def _commit_cache(self, layout: StepLayout, batch: ForwardBatch, decision: Decision) -> None:
        """Moves keys and values of the rows whose input was right from the step buffer to their blocks.

        A sequence that emitted e tokens had e right inputs: the rows on its path after which they came. Block 0 takes
        what is not kept.
        """
        if not layout.num_decoding:
            return
        path, emitted = decision.path[: layout.num_decoding], decision.num_emitted[: layout.num_decoding]
        if batch.paged is not None:
            self._cache.commit_paths(batch.paged, path, emitted, batch.physical_slots)
            return
        counts = [span.num_rows for span in layout.spans[: layout.num_decoding]]
        firsts = integers(list(accumulate(counts[:-1], initial=0)), path.device)
        # A path of a padded batch may name a row that this sequence does not have.
        last = integers(counts, path.device)[:, None] - 1
        rows = firsts[:, None] + torch.minimum(path, last)
        is_kept = torch.arange(path.shape[1], device=path.device) < emitted[:, None]
        physical = torch.where(is_kept, batch.physical_slots[rows], 0)
        self._cache.commit(rows.flatten(), physical.flatten())
