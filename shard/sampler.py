"""The token of each row, decided from vocabulary-sharded logits.

Owns how ranks agree on a token and on its log-probability. Must not know of drafts, sequences or the wire.

A token is a pure function of its row's logits, parameters, seed and position. Whole rows of logits travel between
ranks only for rows with a filter; for all others each rank sends four numbers.
"""

import math
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from shard.cpu.best import best_kernels
from shard.cuda.kernels import best_for
from shard.filters import cpu_parts, filtered_choice
from shard.gumbel import gumbel, row_key
from shard.host_copy import is_readable

# Columns of a row that a maximum is looked for in at once; a power of two, and the least that pays.
_BLOCK = 256
_LEAST_BLOCK = 32


class Group(Protocol):
    """What the sampler needs of a tensor-parallel group."""

    @property
    def size(self) -> int: ...

    def all_gather(self, x: Tensor) -> Tensor:
        """[size, *x.shape]"""


@dataclass(frozen=True, slots=True)
class SamplingRows:
    """Parameters of M rows, on the logits' device, and what the host knows of them.

    A temperature of 0 is greedy, whatever the filters; top_k 0, top_p 1 and min_p 0 filter nothing. `position` is the
    index of the token to be chosen.
    """

    temperature: Tensor  # [M] float32 or float64
    top_k: Tensor  # [M] int64
    top_p: Tensor  # [M] float32 or float64
    min_p: Tensor  # [M] float32 or float64
    seed: Tensor  # [M] int64, all 64 bits
    position: Tensor  # [M] int64
    any_sampled: bool
    filtered: Tensor | None  # [F] int64, rows among which are all with a temperature above 0 and any filter
    any_logprobs: bool

    @staticmethod
    @cache
    def greedy(*, any_logprobs: bool) -> "SamplingRows":
        """Where all rows are greedy nobody looks at their parameters."""
        none = torch.empty(0)
        return SamplingRows(none, none, none, none, none, none, False, None, any_logprobs)


class Chosen(NamedTuple):
    """token_ids [M] int64; logprobs [M] in the logits' dtype, of the model's own distribution; None: nobody asked."""

    token_ids: Tensor
    logprobs: Tensor | None


def choose_tokens(logits: Tensor, *, vocab_start: int, vocab_size: int, rows: SamplingRows, group: Group) -> Chosen:
    """Tokens of M rows from this rank's logits [M, ceil(vocab_size / size)], float32 or float64.

    Every rank calls it. Rank r holds the ids from `vocab_start` = r * ceil(vocab_size / size) on; columns beyond the
    vocabulary are -inf. Equal scores go to the lowest id.
    """
    if group.size == 1 and not (rows.any_sampled or rows.any_logprobs):
        # Nothing to agree on: of what follows this is all that is left.
        return Chosen(first_max(logits)[1], None)
    parts = group.all_gather(reduce_slice(logits, vocab_start=vocab_start, rows=rows))
    token_ids, raw, normalizer = merge_slices(parts)
    if rows.filtered is not None:
        index = rows.filtered
        temperature, top_k = rows.temperature[index].to(logits.dtype), rows.top_k[index]
        top_p, min_p = rows.top_p[index].double(), rows.min_p[index].double()
        whole = group.all_gather(logits[index]).movedim(0, 1).flatten(1)[:, :vocab_size]
        scores = whole / torch.where(temperature > 0, temperature, 1.0)[:, None]
        chosen = filtered_choice(
            # A model that overflows has no best token, but must not end the service for others.
            scores.nan_to_num(torch.finfo(scores.dtype).min, torch.finfo(scores.dtype).max, -math.inf),
            row_key(rows.seed[index], rows.position[index]),
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
        )
        is_filtered = (temperature > 0) & ((top_k > 0) | (top_p < 1) | (min_p > 0))
        chosen = torch.where(is_filtered, chosen, token_ids[index])
        of_chosen = torch.where(is_filtered, whole.gather(1, chosen[:, None])[:, 0].double(), raw[index])
        token_ids, raw = token_ids.index_copy(0, index, chosen), raw.index_copy(0, index, of_chosen)
    return Chosen(token_ids, (raw - normalizer).to(logits.dtype) if rows.any_logprobs else None)


def reduce_slice(logits: Tensor, *, vocab_start: int, rows: SamplingRows) -> Tensor:
    """What one slice says of each row, [M, 4] float64: best score, its id, its logit, log-sum-exp of the logits.

    The log-sum-exp is 0 if no log-probability is asked for. Rows with a filter get a greedy entry, which is not used.
    """
    score, column = first_max(logits)
    if rows.any_sampled and is_readable(logits.device):
        is_sampled = rows.temperature > 0
        if rows.filtered is not None:
            is_sampled[rows.filtered] = False
        sampled = is_sampled.nonzero()[:, 0]
        for index in (sampled[part] for part in cpu_parts(len(sampled), logits.shape[1])):
            score[index], column[index] = _perturbed_argmax(logits[index], index, vocab_start, rows)
    elif rows.any_sampled:
        perturbed = _perturbed_argmax(logits, slice(None), vocab_start, rows)
        is_sampled = rows.temperature > 0
        score = torch.where(is_sampled, perturbed[0], score)
        column = torch.where(is_sampled, perturbed[1], column)
    raw = logits.gather(1, column[:, None])[:, 0]
    normalizer = logits.logsumexp(-1) if rows.any_logprobs else torch.zeros_like(raw)
    return torch.stack([score.double(), (column + vocab_start).double(), raw.double(), normalizer.double()], dim=1)


def first_max(scores: Tensor) -> tuple[Tensor, Tensor]:
    """The greatest of each row of [M, N] and its index, the first of equals."""
    if scores.device.type == "cpu" and scores.dtype == torch.float32 and (kernels := best_kernels()):
        return kernels.first_max(scores)
    if on_device := best_for(scores.dtype, scores.device):
        return on_device.first_max(scores)
    # On CPU the library finds a maximum over ten times as fast as its place, and on a GPU that of a row with all of the
    # device only where it is in parts: so the place is looked for in one block.
    block = math.gcd(scores.shape[1], _BLOCK)
    if block < _LEAST_BLOCK:
        return scores.max(-1)
    blocks = scores.view(len(scores), -1, block)
    first_block = blocks.amax(-1).max(-1).indices
    best, place = blocks[torch.arange(len(scores), device=scores.device), first_block].max(-1)
    return best, first_block * block + place


def merge_slices(parts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Token ids [M] int64, their logits and the log-sum-exp of the whole row [M] float64, from [size, M, 4].

    Slices are in the order of their ids, so the first of equal scores is the lowest id.
    """
    winner = parts[..., 0].max(0).indices
    chosen = parts.gather(0, winner[None, :, None].expand(1, -1, parts.shape[2]))[0]
    return chosen[:, 1].long(), chosen[:, 2], parts[..., 3].logsumexp(0)


def _perturbed_argmax(
    logits: Tensor, index: Tensor | slice, vocab_start: int, rows: SamplingRows
) -> tuple[Tensor, Tensor]:
    """Of the rows in `index`, given their logits: the best score of logits / temperature + noise, and its column."""
    # Greedy rows, which only a device's dense pass sees, are divided by 1 and their result is dropped.
    temperature = rows.temperature[index].to(logits.dtype)
    scores = logits / torch.where(temperature > 0, temperature, 1.0)[:, None]
    ids = torch.arange(vocab_start, vocab_start + logits.shape[1], device=logits.device)
    noise = gumbel(rows.seed[index, None], rows.position[index, None], ids, scores.dtype)
    return (scores + noise).max(-1)
