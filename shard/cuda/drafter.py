"""A drafter's part of a step by Triton kernels: what it learns, and what it proposes. Owns how the work is cut.

In a step of few sequences each operation takes a microsecond or two, whatever it does, and in torch operations there
are over a hundred: so learning is one kernel, and a proposal four.
"""

import torch
from torch import Tensor

from shard.cuda.chain_kernels import draft_chains
from shard.cuda.device import early, power_of_two
from shard.cuda.learn_kernels import learn
from shard.cuda.lookup_kernels import look_up_parts
from shard.cuda.price_kernels import rank_drafts, take_drafts
from shard.cuda.tree_kernels import draft_trees
from shard.speculation import Candidates, DraftTree, Method, Yielded
from shard.speculation.memory import Memory
from shard.speculation.prices import DevicePrices
from shard.states import SequenceStates

# Columns of a text that a program searches; drafts that are compared at once, and of which the best is looked for;
# sequences that are learned of at once.
_TEXT_TILE, _DRAFT_TILE, _TOTAL_TILE, _SEQUENCE_TILE = 1024, 128, 1024, 32
# Of rows: steps with prompts come in all sizes, and each tile is compiled when it is first needed.
_LEAST_TILE = 16
# Of the places of nodes a warp takes so many, if there are not too many.
_PLACES_PER_WARP, _MOST_WARPS = 128, 8


class DraftingKernels:
    """As `shard.cuda.interface.Drafting` says."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory

    def learn(self, slots: Tensor, num_decoding: int, yielded: Yielded) -> Tensor | None:
        memory, device = self._memory, slots.device
        token_ids, num_emitted, _, on_path, path, num_accepted, num_checked = yielded
        (num_slots, depth), (_, num_heads, width) = memory.proposed.ids.shape, memory.proposed.said.shape
        num_sequences, num_methods = len(slots), len(Method)
        num_rows, counts = 1, None
        if on_path is not None:
            num_rows = on_path.shape[1]
            counts = torch.empty((num_sequences, 2, num_methods, depth), dtype=torch.int64, device=device)
        lookups, heads, proposed = memory.lookups, memory.heads, memory.proposed
        assert token_ids.stride(1) == path.stride(1) == slots.stride(0) == 1
        learn[2 + num_sequences if counts is not None else 2,](
            slots,
            token_ids,
            num_emitted,
            None if on_path is None else on_path.contiguous().view(torch.uint8),
            path,
            num_accepted,
            num_checked,
            token_ids.stride(0),
            num_emitted.stride(0),
            path.stride(0),
            num_accepted.stride(0),
            num_checked.stride(0),
            proposed.ids,
            proposed.matches if memory.most_match else None,
            memory.asked_lookup,
            lookups.above,
            lookups.below,
            lookups.prior,
            memory.own.right,
            memory.own.said,
            proposed.said_ids,
            proposed.said if num_heads else None,
            memory.asked_heads,
            heads.above,
            heads.below,
            heads.prior,
            proposed.methods,
            counts,
            num_decoding,
            num_slots,
            num_rows,
            KEPT=lookups.kept,
            WEIGHT=lookups.weight,
            OWN_KEPT=memory.own.kept,
            OWN_WEIGHT=memory.own.weight,
            DEPTH=depth,
            MATCHES=memory.most_match + 1,
            HEADS=num_heads,
            WIDTH=width,
            NUM_METHODS=num_methods,
            SIZE=proposed.methods.shape[1],
            PADDED_DEPTH=power_of_two(depth, least=1),
            PADDED_MATCHES=power_of_two(memory.most_match + 1, least=1),
            PADDED_SAID=power_of_two(num_heads * width, least=1),
            PADDED_PATH=power_of_two(depth + 1, least=1),
            PADDED_CELLS=power_of_two(num_methods * depth, least=1),
            PADDED_ROWS=power_of_two(num_rows, least=_LEAST_TILE),
            TILE=_SEQUENCE_TILE,
            **early(device),
            num_warps=4,
        )
        return counts

    def propose(
        self,
        states: SequenceStates,
        candidates: Candidates | None,
        prices: DevicePrices,
        *,
        slots: Tensor,
        proposing: Tensor,
        max_drafts: Tensor,
        max_depth: Tensor,
    ) -> DraftTree:
        memory, device, num_trees = self._memory, slots.device, len(proposing)
        size = memory.proposed.methods.shape[1]
        rows = power_of_two(size, least=1)
        length = states.token_ids.shape[1]
        parts = power_of_two(-(-length // _TEXT_TILE), least=1)

        def made(*shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
            return torch.empty(shape, dtype=dtype, device=device)

        found = None
        if memory.most_match:
            found = made(num_trees, parts, dtype=torch.int32)
            look_up_parts[num_trees, parts](
                slots,
                proposing,
                max_drafts,
                states.token_ids,
                states.num_tokens,
                found,
                length,
                MOST_MATCH=memory.most_match,
                TILE=_TEXT_TILE,
                **early(device),
                num_warps=4,
            )
        tree = DraftTree(made(num_trees, size), made(num_trees, size), made(num_trees))
        log_ps = made(num_trees, size, dtype=torch.float32)
        given = (
            slots,
            proposing,
            max_drafts,
            max_depth,
            states.token_ids,
            states.num_tokens,
            states.max_num_tokens,
            states.finished,
            states.draft_token_ids,
            states.draft_parents,
            memory.proposed.methods,
            found,
            memory.proposed.ids,
            memory.proposed.matches,
            memory.asked_lookup,
            memory.lookups.above,
            memory.lookups.below,
            memory.own.right,
            memory.own.said,
        )
        outputs = tree.token_ids, tree.parents, log_ps, tree.num_drafts
        sizes = {
            "PARTS": parts,
            "LEAST_MATCH": memory.least_match,
            "SUREST_LOOKUP": memory.surest_lookup,
            "DEPTH": memory.proposed.ids.shape[1],
            "SIZE": size,
            "ROWS": rows,
        }
        if candidates is None:
            assert found is not None, "a drafter without lookup needs heads"
            draft_chains[num_trees,](
                *given,
                prices.packed,
                *outputs,
                length,
                **sizes,
                **early(device),
                num_warps=1,
            )
        else:
            self._draft_trees(candidates, prices, given, outputs, length, sizes)
        ranks, totals = made(num_trees, size, dtype=torch.int32), torch.empty_like(log_ps)
        rank_drafts[num_trees,](
            log_ps,
            prices.packed,
            ranks,
            totals,
            num_trees * size,
            MOST=DevicePrices.MOST,
            PADDED_MOST=power_of_two(DevicePrices.MOST, least=1),
            SIZE=size,
            ROWS=rows,
            TILE=_DRAFT_TILE,
            **early(device),
            num_warps=4,
        )
        take_drafts[num_trees,](
            slots,
            proposing,
            prices.packed,
            ranks,
            totals,
            tree.num_drafts,
            states.num_drafts,
            num_trees * size,
            SIZE=size,
            ROWS=rows,
            TILE=_TOTAL_TILE,
            **early(device),
            num_warps=4,
        )
        return tree

    def _draft_trees(
        self,
        candidates: Candidates,
        prices: DevicePrices,
        given: tuple[Tensor | None, ...],
        outputs: tuple[Tensor, ...],
        length: int,
        sizes: dict[str, int | float],
    ) -> None:
        memory, (token_ids, probabilities) = self._memory, candidates
        num_trees, num_heads, width = token_ids.shape
        assert token_ids.stride(2) == probabilities.stride(2) == 1
        depth, size = memory.proposed.ids.shape[1], memory.proposed.methods.shape[1]
        columns = width + (1 if memory.most_match else 0)
        places = power_of_two(size * columns, least=1)
        costs = torch.empty((num_trees, 2, depth, columns), dtype=torch.float32, device=token_ids.device)
        followers = torch.empty((num_trees, depth, columns), dtype=torch.int32, device=token_ids.device)
        draft_trees[num_trees,](
            *given,
            token_ids,
            probabilities,
            memory.proposed.said_ids,
            memory.proposed.said,
            memory.asked_heads,
            memory.heads.above,
            memory.heads.below,
            prices.packed,
            costs,
            followers,
            *outputs,
            length,
            token_ids.stride(0),
            token_ids.stride(1),
            probabilities.stride(0),
            probabilities.stride(1),
            **sizes,
            SUREST_HEAD=memory.surest_head,
            HEADS=num_heads,
            WIDTH=width,
            COLUMNS=columns,
            PADDED_DEPTHS=power_of_two(max(depth, num_heads), least=1),
            PADDED_COLUMNS=power_of_two(columns, least=1),
            PLACES=places,
            **early(token_ids.device),
            num_warps=_num_warps(places),
        )


def _num_warps(num_places: int) -> int:
    return min(_MOST_WARPS, max(1, num_places // _PLACES_PER_WARP))
