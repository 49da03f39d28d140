"""Which ids of a row survive top-k, top-p and min-p, and which survivor the noise picks.

Works on whole rows of the vocabulary. Must not know of ranks, log-probabilities or rows without a filter.

Survivors are always a prefix of the row's order: scores descending, ids ascending among equals. So ties at a cut go
by rule: top-k keeps every id that equals the k-th score (as transformers' warper does); top-p keeps the lowest ids.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from shard.gumbel import keyed_gumbel
from shard.host_copy import is_readable

# On CPU the cuts are looked for among the ids whose probability is within e^-depth of the highest, then deeper. Of rows
# of a 135M chat model with top-p 0.95, depth 8 decides 82 % (365 ids) at temperature 1, and 12 all at up to 1.5.
_DEPTHS = (8.0, 12.0, math.inf)
# So many scores are worked on at a time on CPU, in whole rows: the temporaries (1 MiB in float32) stay in the cache.
_CPU_SCORES = 1 << 18
_CLASSES = 1024


def survivors(ordered: Tensor, total: Tensor, *, top_k: Tensor, top_p: Tensor, min_p: Tensor) -> Tensor:
    """Mask [F, W] of the survivors among scores [F, W] in order, padded with -inf; at least the first of each row.

    `ordered` holds whole rows or any part of them that includes all scores above its lowest. `total` [F] float64 is the
    sum of exp(score - highest) of whole rows. top_k [F] int64 (0: off), then top_p (1: off) of what is left, then
    min_p (0: off), relative to the highest; the last two in float64. The order is that of transformers' warpers.

    top-p keeps an id while the probability of those before it is below p. min-p needs no renormalization: the ratio to
    the highest probability is exp(score - highest) whatever was cut.
    """
    weight = (ordered.double() - ordered[:, :1].double()).exp()
    kth = ordered.gather(1, (top_k - 1).clamp(0, ordered.shape[1] - 1)[:, None])
    has_k = top_k > 0
    is_kept = (ordered > -math.inf) & ((ordered >= kth) | ~has_k[:, None])

    weight = torch.where(is_kept, weight, 0.0)
    before = F.pad(weight.cumsum(1)[:, :-1], (1, 0))
    mass = torch.where(has_k, weight.sum(1), total)
    is_kept &= (before < (top_p * mass)[:, None]) | (top_p >= 1)[:, None]
    is_kept &= weight >= min_p[:, None]
    is_kept[:, 0] = True
    return is_kept


def cpu_parts(num_rows: int, vocab: int) -> list[slice]:
    """Slices of rows that are worked on at a time on CPU."""
    step = max(1, _CPU_SCORES // vocab)
    return [slice(i, i + step) for i in range(0, num_rows, step)]


def filtered_choice(scores: Tensor, key: Tensor, *, top_k: Tensor, top_p: Tensor, min_p: Tensor) -> Tensor:
    """The ids [F] int64 that the noise picks among the survivors of scores [F, V] = logits / temperature."""
    if is_readable(scores.device):
        some = cpu_parts(*scores.shape)
        return torch.cat([_choice_by_depth(scores[i], key[i], top_k[i], top_p[i], min_p[i]) for i in some])
    total = (scores - scores.amax(1, keepdim=True)).exp_().sum(1).double()
    ordered, ids = scores.sort(dim=1, descending=True, stable=True)
    return _pick(ordered, ids, survivors(ordered, total, top_k=top_k, top_p=top_p, min_p=min_p), key)


def _choice_by_depth(scores: Tensor, key: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor) -> Tensor:
    """The same ids, sorting only as many scores as it takes to be sure. Looks at values, so for the CPU."""
    peak = scores.amax(1, keepdim=True)
    total = (scores - peak).exp_().sum(1).double()
    chosen = torch.empty_like(key)
    pending = torch.arange(len(scores))
    for depth in _DEPTHS:
        k, part = top_k[pending], scores[pending]
        ordered, ids, count = _upper_set(part, _floor(part, peak[pending], k, depth))
        kept = survivors(ordered, total[pending], top_k=k, top_p=top_p[pending], min_p=min_p[pending])
        # Decided: the k-th score and its equals are in the part, or a cut falls inside it, or it is the whole row.
        num_kept = kept.sum(1)
        decided = torch.where(k > 0, k <= count, num_kept < count) | (count == scores.shape[1])
        width = int(num_kept.max())
        picked = _pick(ordered[:, :width], ids[:, :width], kept[:, :width], key[pending])
        chosen[pending[decided]] = picked[decided]
        pending = pending[~decided]
        if not len(pending):
            break
    return chosen


def _pick(ordered: Tensor, ids: Tensor, kept: Tensor, key: Tensor) -> Tensor:
    """The lowest id among those with the highest perturbed score."""
    perturbed = ordered + keyed_gumbel(key[:, None], ids, ordered.dtype)
    perturbed = perturbed.masked_fill(~kept, -math.inf)
    is_best = perturbed == perturbed.amax(1, keepdim=True)
    return torch.where(is_best, ids, torch.iinfo(torch.int64).max).amin(1)


def _floor(scores: Tensor, peak: Tensor, top_k: Tensor, depth: float) -> Tensor:
    """A score [F, 1] of each row at or above which its cuts fall: surely for top-k, most likely for the others.

    Of the maxima of disjoint classes of ids, k are at or above the k-th, so at least k scores are.
    """
    floor = peak - depth
    num_classes = min(_CLASSES, scores.shape[1])
    most = min(int(top_k.max()), num_classes)
    if most == 0 or depth == math.inf:
        return floor
    stride = scores.shape[1] // num_classes
    maxima = scores[:, : stride * num_classes].view(len(scores), stride, num_classes).amax(1).topk(most).values
    kth = maxima.gather(1, (top_k - 1).clamp(0, most - 1)[:, None])
    return torch.where((top_k[:, None] > 0) & (top_k[:, None] <= most), kth, floor)


def _upper_set(scores: Tensor, floor: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Scores at or above the floor, in order and padded with -inf, their ids, and how many each row has."""
    num_rows = len(scores)
    row, column = torch.nonzero(scores >= floor, as_tuple=True)
    count = torch.bincount(row, minlength=num_rows)
    slot = torch.arange(len(row)) - (count.cumsum(0) - count)[row]
    values = scores.new_full((num_rows, int(count.max())), -math.inf)
    ids = torch.zeros_like(values, dtype=torch.int64)
    values[row, slot] = scores[row, column]
    ids[row, slot] = column
    ordered, order = values.sort(dim=1, descending=True, stable=True)
    return ordered, ids.gather(1, order), count
