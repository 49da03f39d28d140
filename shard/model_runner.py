"""Runs steps: forward, choose, verify, commit, propose. Owns the states and the cache; called by one thread.

A step on every rank:

    forward through the sharded model -> logits of this rank's vocabulary slice -> rank 0 chooses the token of each
    row, verifies the drafts, proposes the next -> one broadcast -> every rank commits tokens, keys and values

Must not know of gRPC, sessions or what a block means to the router.
"""

import hashlib
import time
from typing import Protocol

import torch
from torch import Tensor

from shard.decision import Decision
from shard.distributed import TPGroup
from shard.forward_batch import ForwardBatch
from shard.kv_cache import KVCache
from shard.layout import StepLayout, lay_out
from shard.plan import SequenceResult, StepPlan, StepResult
from shard.sampler import SamplingRows, choose_tokens
from shard.speculation import Proposer
from shard.speculation.verify import verify
from shard.states import SequenceStates


class Model(Protocol):
    @property
    def vocab_start(self) -> int: ...

    def forward(self, batch: ForwardBatch, cache: KVCache) -> Tensor: ...

    def logits(self, hidden: Tensor) -> Tensor: ...


class ModelRunner:
    def __init__(
        self,
        *,
        model: Model,
        vocab_size: int,
        cache: KVCache,
        states: SequenceStates,
        group: TPGroup,
        proposer: Proposer | None,
    ) -> None:
        self._model = model
        self._vocab_size = vocab_size
        self._cache = cache
        self._states = states
        self._group = group
        self._proposer = proposer
        self._digest = hashlib.blake2b(digest_size=8)

    def reset(self) -> None:
        """Forgets every sequence. Cache contents need no clearing: nothing reads a block that was not written."""
        self._states.reset()
        self._digest = hashlib.blake2b(digest_size=8)

    @torch.inference_mode()
    def execute(self, plan: StepPlan) -> StepResult:
        start = time.perf_counter_ns()
        self._states.begin_step(plan.released_slots, plan.new_sequences, plan.sequences)
        layout = lay_out(plan.sequences, self._states)
        results = self._run(layout) if layout else []
        self._digest.update(plan.step_id.to_bytes(8, "little"))
        digest = int.from_bytes(self._digest.digest(), "little")
        return StepResult(plan.step_id, results, digest, time.perf_counter_ns() - start)

    def _run(self, layout: StepLayout) -> list[SequenceResult]:
        batch = ForwardBatch.build(
            token_ids=layout.token_ids, positions=layout.positions, spans=layout.spans, cache=self._cache
        )
        hidden = self._model.forward(batch, self._cache)
        if not layout.slots.numel():
            return []
        rows = self._sampling_rows(layout)
        chosen = choose_tokens(
            self._model.logits(hidden[layout.logit_rows]),
            vocab_start=self._model.vocab_start,
            vocab_size=self._vocab_size,
            rows=rows,
            group=self._group,
        )
        decision = self._decide(layout, chosen.token_ids)
        self._commit_cache(layout, batch, decision.num_emitted)
        return self._report(layout, decision, chosen.logprobs if rows.any_logprobs else None)

    def _sampling_rows(self, layout: StepLayout) -> SamplingRows:
        states, slots = self._states, layout.logit_slots
        sampling = [host.new.sampling for host in layout.host_slots]
        return SamplingRows(
            temperature=states.temperature[slots],
            top_k=states.top_k[slots],
            top_p=states.top_p[slots],
            min_p=states.min_p[slots],
            seed=states.seed[slots],
            # The token that follows the row's.
            position=layout.positions[layout.logit_rows] + 1,
            any_sampled=any(s.is_sampled for s in sampling),
            filtered_rows=[row for row, s in enumerate(sampling) if s.is_filtered],
            any_logprobs=any(host.new.logprobs for host in layout.host_slots),
        )

    def _decide(self, layout: StepLayout, token_ids: Tensor) -> Decision:
        """Rank 0's decision, which the others take from its broadcast. Tokens and drafts are committed on the way."""
        states, slots = self._states, layout.slots
        num_rows = layout.cells.shape[1]
        num_speculative_tokens = self._proposer.num_speculative_tokens if self._proposer else 0
        if self._group.rank == 0:
            target = token_ids[layout.cells]
            columns = states.num_tokens[slots][:, None] + torch.arange(num_rows - 1, device=states.device)
            verdict = verify(
                target,
                states.token_ids[slots[:, None], columns.clamp_max(states.token_ids.shape[1] - 1)],
                num_drafts=layout.num_drafts,
                num_tokens=states.num_tokens[slots],
                max_num_tokens=states.max_num_tokens[slots],
                stop_token_ids=states.stop_token_ids[slots],
            )
            states.append(slots, target, verdict.num_emitted, verdict.finished)
            drafts, num_drafts = self._propose(layout)
            decision = Decision(
                token_ids=target,
                draft_token_ids=drafts,
                num_emitted=verdict.num_emitted,
                num_accepted=verdict.num_accepted,
                num_checked=layout.num_drafts,
                num_drafts=num_drafts,
                finished=verdict.finished,
            )
            self._group.broadcast(decision.pack())
        else:
            width = Decision.width(num_rows, num_speculative_tokens)
            packed = torch.empty(len(slots), width, dtype=torch.int64, device=states.device)
            decision = Decision.unpack(self._group.broadcast(packed), num_rows)
            states.append(slots, decision.token_ids, decision.num_emitted, decision.finished)
        states.set_drafts(slots, decision.draft_token_ids, decision.num_drafts)
        return decision

    def _propose(self, layout: StepLayout) -> tuple[Tensor, Tensor]:
        states, slots = self._states, layout.slots
        if self._proposer is None:
            return slots.new_zeros(len(slots), 0), torch.zeros_like(slots)
        num_tokens = states.num_tokens[slots]
        # Of the tokens still wanted, the last one is never a draft's: a step always brings one of its own.
        budget = torch.minimum(layout.propose, states.max_num_tokens[slots] - num_tokens - 1).clamp_min(0)
        budget = torch.where(states.finished[slots], 0, budget)
        if states.device.type == "cpu":
            if not budget.any():
                return slots.new_zeros(len(slots), self._proposer.num_speculative_tokens), torch.zeros_like(slots)
            history = states.token_ids[slots, : int(num_tokens.max())]
        else:
            history = states.token_ids[slots]
        drafts = self._proposer.propose(history, num_tokens, budget)
        return drafts.token_ids, drafts.num_drafts

    def _commit_cache(self, layout: StepLayout, batch: ForwardBatch, num_emitted: Tensor) -> None:
        """Moves keys and values of the rows whose input was right from the step buffer to their blocks.

        A sequence that emitted e tokens had e right inputs: its last token and e - 1 drafts. The others go to block 0.
        """
        if not layout.num_decoding:
            return
        counts = [span.num_rows for span in layout.spans[: layout.num_decoding]]
        row_of = torch.tensor([r for count in counts for r in range(count)], device=self._states.device)
        repeats = torch.tensor(counts, device=self._states.device)
        emitted = num_emitted[: layout.num_decoding].repeat_interleave(repeats, output_size=batch.num_step_rows)
        physical = torch.where(row_of < emitted, batch.physical_slots[: batch.num_step_rows], 0)
        self._cache.commit(torch.arange(batch.num_step_rows, device=physical.device), physical)

    def _report(self, layout: StepLayout, decision: Decision, logprobs: Tensor | None) -> list[SequenceResult]:
        slots, num_tokens = layout.slots.tolist(), self._states.num_tokens[layout.slots]
        token_ids = decision.token_ids.tolist()
        emitted, accepted = decision.num_emitted.tolist(), decision.num_accepted.tolist()
        checked = decision.num_checked.tolist()
        self._digest.update(
            repr((slots, num_tokens.tolist(), [t[:e] for t, e in zip(token_ids, emitted, strict=True)])).encode()
        )
        if self._group.rank != 0:
            return []
        cells = layout.cells.tolist()
        values = logprobs.tolist() if logprobs is not None else []
        return [
            SequenceResult(
                slot=slot,
                token_ids=token_ids[s][: emitted[s]],
                logprobs=[values[cell] for cell in cells[s][: emitted[s]]]
                if self._states.host[slot].new.logprobs
                else [],
                drafted=checked[s],
                accepted=accepted[s],
            )
            for s, slot in enumerate(slots)
            if emitted[s]
        ]
