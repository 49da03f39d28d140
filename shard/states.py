"""What a rank keeps of each sequence between steps: tokens, drafts, limits, sampling and block tables.

Every rank holds the same. Nothing here decides: the router gives slots and blocks, rank 0 gives tokens.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from shard.cpu.decide import decision_kernels
from shard.cpu.slots import SlotsStruct
from shard.host_copy import integers, is_readable
from shard.plan import NewSequence, SequenceStep
from shard.speculation import DraftTree

# Of a sequence at first: the 64 that a request may name and more than models have. A step that was captured is for one
# number of them, and of no use where a sequence came that has more.
_STOP_TOKENS = 80


@dataclass(slots=True)
class HostSlot:
    """The part of a sequence that the layout of a step depends on."""

    new: NewSequence
    num_known_tokens: int
    block_table: list[int] = field(default_factory=list)


class SequenceStates:
    """Tensors have a row per slot, and one more for the `spare_slot`, whose sequence has ended: a step may be filled up
    with it.

    `token_ids` [slots + 1, max_total_tokens] holds `num_tokens` committed tokens; `draft_token_ids` and `draft_parents`
    [slots + 1, tree_size] the pending tree of `num_drafts` (see DraftTree). Stop tokens are padded with -1.
    `block_tables` [slots + 1, blocks] int32 are those of `host` for a device whose values the host does not look at.
    """

    def __init__(
        self, *, num_slots: int, max_total_tokens: int, tree_size: int, block_size: int, device: torch.device
    ) -> None:
        num_rows, self.spare_slot = num_slots + 1, num_slots

        def integers(*shape: int) -> Tensor:
            return torch.zeros(num_rows, *shape, dtype=torch.int64, device=device)

        def reals() -> Tensor:
            return torch.zeros(num_rows, dtype=torch.float64, device=device)

        self.device = device
        self.block_size = block_size
        self.is_readable = is_readable(device)
        self.token_ids = integers(max_total_tokens)
        self.num_tokens = integers()
        self.draft_token_ids = integers(tree_size)
        self.draft_parents = integers(tree_size)
        self.num_drafts = integers()
        self.max_num_tokens = integers()
        self.finished = torch.zeros(num_rows, dtype=torch.bool, device=device)
        self.stop_token_ids = integers(_STOP_TOKENS)
        self.temperature, self.top_p, self.min_p = reals(), reals(), reals()
        self.top_k, self.seed = integers(), integers()
        self.block_tables = integers(max_total_tokens // block_size + 1).int()
        self.host: dict[int, HostSlot] = {}
        # For the compiled kernels: these tensors stay where they are.
        self.kept = SlotsStruct.of(
            token_ids=self.token_ids,
            num_tokens=self.num_tokens,
            max_num_tokens=self.max_num_tokens,
            draft_token_ids=self.draft_token_ids,
            draft_parents=self.draft_parents,
            num_drafts=self.num_drafts,
            finished=self.finished,
        )
        self.num_tokens[self.spare_slot] = self.max_num_tokens[self.spare_slot] = 1
        self.finished[self.spare_slot] = True

    def reset(self) -> None:
        self.host.clear()

    def begin_step(self, released: list[int], new: list[NewSequence], steps: list[SequenceStep]) -> None:
        for slot in released:
            del self.host[slot]
        for sequence in new:
            self._insert(sequence)
        if not self.is_readable:
            self._extend_tables([step for step in steps if step.new_block_ids])
        for step in steps:
            self.host[step.slot].block_table += step.new_block_ids

    def _extend_tables(self, steps: list[SequenceStep]) -> None:
        if not steps:
            return
        width = self.block_tables.shape[1]
        places = [width * step.slot + len(self.host[step.slot].block_table) for step in steps]
        index = [place + i for place, step in zip(places, steps, strict=True) for i in range(len(step.new_block_ids))]
        block_ids = [block_id for step in steps for block_id in step.new_block_ids]
        index_there, there = integers([*index, *block_ids], self.device).view(2, -1)
        self.block_tables.view(-1).index_copy_(0, index_there, there.int())

    def _insert(self, new: NewSequence) -> None:
        slot, num_tokens = new.slot, len(new.token_ids)
        if slot in self.host:
            raise ValueError(f"slot {slot} was given away twice")
        self.host[slot] = HostSlot(new, num_tokens)
        self.token_ids[slot, :num_tokens] = integers(new.token_ids, self.device)
        self.num_tokens[slot] = num_tokens
        self.num_drafts[slot] = 0
        self.max_num_tokens[slot] = new.max_num_tokens
        self.finished[slot] = False
        self._insert_stop_tokens(slot, new.stop_token_ids)
        self.temperature[slot] = new.sampling.temperature
        self.top_k[slot] = new.sampling.top_k
        self.top_p[slot] = new.sampling.top_p
        self.min_p[slot] = new.sampling.min_p
        self.seed[slot] = new.sampling.seed - (new.sampling.seed >> 63 << 64)  # the same 64 bits, signed

    def _insert_stop_tokens(self, slot: int, stop_token_ids: list[int]) -> None:
        while len(stop_token_ids) > (width := self.stop_token_ids.shape[1]):
            self.stop_token_ids = torch.nn.functional.pad(self.stop_token_ids, (0, width), value=-1)
        self.stop_token_ids[slot] = -1
        self.stop_token_ids[slot, : len(stop_token_ids)] = integers(stop_token_ids, self.device)

    def append(self, slots: Tensor, token_ids: Tensor, num_emitted: Tensor, finished: Tensor) -> None:
        """Commits the first `num_emitted` [S] of `token_ids` [S, R] of each of the slots [S]. What was drafted for them
        is void."""
        if self.is_readable and (kernels := decision_kernels()):
            kernels.append(self.kept, slots, token_ids, num_emitted, finished)
            return
        columns = torch.arange(token_ids.shape[1], device=self.device)
        # Past the end only where nothing is kept.
        places = (self.num_tokens[slots][:, None] + columns).clamp_max(self.token_ids.shape[1] - 1)
        kept = torch.where(columns < num_emitted[:, None], token_ids, self.token_ids[slots[:, None], places])
        self.token_ids[slots[:, None], places] = kept
        self.num_tokens[slots] += num_emitted
        self.num_drafts.index_fill_(0, slots, 0)
        self.finished[slots] |= finished

    def bound_drafts(self, slots: Tensor, max_drafts: Tensor, max_depth: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of sequences in `slots` [S] how many tokens they have, and what is left of the drafts that are wanted and of
        their depth, both [S]: nothing of a sequence that ended."""
        num_tokens = self.num_tokens[slots]
        # Of the tokens still wanted, the last one is never a draft's: a step always brings one of its own.
        room = (self.max_num_tokens[slots] - num_tokens - 1).clamp_min(0)
        max_depth = torch.where(self.finished[slots], 0, torch.minimum(max_depth, room))
        return num_tokens, torch.where(max_depth > 0, max_drafts, 0), max_depth

    def set_drafts(self, slots: Tensor, tree: DraftTree) -> None:
        """Makes a tree per slot [S] pending."""
        if self.is_readable and (kernels := decision_kernels()):
            kernels.set_drafts(self.kept, slots, tree)
            return
        self.draft_token_ids[slots] = tree.token_ids
        self.draft_parents[slots] = tree.parents
        self.num_drafts[slots] = tree.num_drafts
