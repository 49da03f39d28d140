"""The compiled drafting of draft.c as functions of tensors: what ngram.py and tree.py compute, on CPU, in any dtype."""

import ctypes
import math
from functools import cache

import torch
from torch import Tensor

from shard.cpu.kernels import cpu_kernels

_long, _float, _pointer = ctypes.c_long, ctypes.c_float, ctypes.c_void_p


class _Said(ctypes.Structure):
    _fields_ = [
        *((name, _pointer) for name in ("ids", "probabilities", "guesses", "believed", "matches")),
        *((name, _long) for name in ("n", "depth", "width")),
    ]


class _Trees(ctypes.Structure):
    _fields_ = [
        *((name, _pointer) for name in ("max_drafts", "max_depth", "ids", "parents", "methods", "counts", "log_ps")),
        ("size", _long),
        ("least_log_p", _float),
    ]


class PricesStruct(ctypes.Structure):
    """`Prices` of draft.h."""

    _fields_ = [
        ("firsts", ctypes.POINTER(ctypes.c_int64)),
        ("prices", ctypes.POINTER(ctypes.c_double)),
        ("count", _long),
        ("least", _float),
    ]

    @classmethod
    def of(cls, firsts: list[int], prices: list[float], least: float) -> "PricesStruct":
        """Holds the numbers, too."""
        count = len(prices)
        return cls((ctypes.c_int64 * count)(*firsts), (ctypes.c_double * count)(*prices), count, least)


class DraftKernels:
    def __init__(self, library: ctypes.CDLL) -> None:
        self._look_up = library.look_up
        self._look_up.argtypes = [*[_pointer] * 4, *[_long] * 5]
        self._best_trees = library.best_trees
        self._best_trees.argtypes = [ctypes.POINTER(_Said), ctypes.POINTER(_Trees)]
        self._worth_most = library.worth_most
        self._worth_most.argtypes = [*[_pointer] * 3, ctypes.POINTER(PricesStruct), *[_long] * 2]

    def look_up(
        self, token_ids: Tensor, num_tokens: Tensor, *, min_match: int, max_match: int, ahead: int
    ) -> tuple[Tensor, Tensor]:
        """[S, L], [S] -> guesses [S, ahead] and the length of the match [S], all int64."""
        token_ids, num_tokens = token_ids.contiguous(), num_tokens.contiguous()
        n, stride = token_ids.shape
        guesses, matches = token_ids.new_empty((n, ahead)), torch.empty_like(num_tokens)
        pointers = (tensor.data_ptr() for tensor in (token_ids, num_tokens, guesses, matches))
        self._look_up(*pointers, n, stride, min_match, max_match, ahead)
        return guesses, matches

    def best_trees(
        self,
        ids: Tensor,
        probabilities: Tensor,
        continuation: tuple[Tensor, Tensor, Tensor] | None,
        *,
        size: int,
        max_drafts: Tensor,
        max_depth: Tensor,
        least_probability: float,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """ids and probabilities [S, D, W]; continuation: guesses and their probabilities [S, D] and match lengths [S].

        Returns token ids, parents and methods [S, size], the number of drafts [S], and logarithms of their
        probabilities [S, size], as tree.best_tree does.
        """
        n, depth, width = ids.shape
        # Kept alive until the call is over.
        held = [ids.contiguous(), probabilities.float().contiguous()]
        if continuation is not None:
            guesses, believed, matches = continuation
            held += [guesses.contiguous(), believed.float().contiguous(), matches.contiguous()]
        held += [max_drafts.contiguous(), max_depth.contiguous()]
        pointers = [tensor.data_ptr() for tensor in held]
        token_ids, parents, methods = torch.zeros(3, n, size, dtype=torch.int64)
        counts, log_ps = torch.empty(n, dtype=torch.int64), torch.full((n, size), -math.inf)
        from_lookup = pointers[2:5] if continuation is not None else [None] * 3
        least = math.log(least_probability) if least_probability > 0 else -math.inf
        outputs = (tensor.data_ptr() for tensor in (token_ids, parents, methods, counts, log_ps))
        self._best_trees(
            _Said(*pointers[:2], *from_lookup, n, depth, width),
            _Trees(*pointers[-2:], *outputs, size, least),
        )
        return token_ids, parents, methods, counts, log_ps

    def worth_most(self, log_ps: Tensor, counts: Tensor, prices: PricesStruct) -> Tensor:
        """log_ps [S, N] of the first counts [S] drafts -> how many of each are taken [S], as prices.worth_most does."""
        log_ps, counts = log_ps.float().contiguous(), counts.contiguous()
        taken = torch.empty_like(counts)
        pointers = (tensor.data_ptr() for tensor in (log_ps, counts, taken))
        self._worth_most(*pointers, prices, *log_ps.shape)
        return taken


@cache
def draft_kernels() -> DraftKernels | None:
    """None where nothing can be compiled; who calls has a path of torch operations."""
    kernels = cpu_kernels()
    return DraftKernels(kernels.library) if kernels else None
