"""The compiled functions of lookup.c as functions of tensors: what a Drafter learns, and drafts without heads, on CPU.

Integers are int64.
"""

import ctypes
from typing import NamedTuple

import torch
from torch import Tensor

from shard.cpu.calibrate import OwnStruct, OwnSums, RatioStruct, Sums
from shard.cpu.draft import PricesStruct
from shard.cpu.kernels import cpu_kernels
from shard.cpu.slots import SlotsStruct

_long, _float, _pointer = ctypes.c_long, ctypes.c_float, ctypes.c_void_p


class _Lookup(ctypes.Structure):
    _fields_ = [
        *((name, _pointer) for name in ("ids", "matches", "methods")),
        ("ratio", RatioStruct),
        ("own", OwnStruct),
        *((name, _long) for name in ("num_slots", "depth", "tree_size", "least_match", "most_match")),
        ("most_sure", _float),
    ]


class _Came(ctypes.Structure):
    _fields_ = [
        *(
            (name, _pointer)
            for name in ("slots", "tokens", "emitted", "parents", "path", "accepted", "checked", "counts")
        ),
        *((name, _long) for name in ("n", "num_decoding", "width", "rows", "num_methods")),
    ]


class _Asked(ctypes.Structure):
    _fields_ = [
        *((name, _pointer) for name in ("slots", "places", "max_drafts", "max_depth")),
        ("n", _long),
    ]


class Proposed(NamedTuple):
    """What is remembered of the last proposals: ids [slots, K] behind matches [slots], methods [slots, N] of drafts."""

    ids: Tensor
    matches: Tensor
    methods: Tensor


class LookupKernels:
    """Over one drafter's tensors, which must outlive it and stay where they are."""

    def __init__(
        self,
        library: ctypes.CDLL,
        proposed: Proposed,
        sums: Sums,
        own: OwnSums,
        *,
        least_match: int,
        most_match: int,
        most_sure: float,
    ) -> None:
        self._learn = library.learn
        self._learn.argtypes = [ctypes.POINTER(_Lookup), ctypes.POINTER(_Came), ctypes.c_int]
        self._propose = library.propose
        structs = SlotsStruct, _Lookup, _Asked, PricesStruct
        self._propose.argtypes = [*map(ctypes.POINTER, structs), *[_pointer] * 3]
        self._tree_size = proposed.methods.shape[1]
        self._lookup = _Lookup(
            *(tensor.data_ptr() for tensor in proposed),
            RatioStruct.of(sums),
            OwnStruct.of(own),
            *proposed.ids.shape,
            self._tree_size,
            least_match,
            most_match,
            most_sure,
        )

    def learn(
        self,
        slots: Tensor,
        num_decoding: int,
        *,
        token_ids: Tensor,
        num_emitted: Tensor,
        parents: Tensor,
        path: Tensor,
        num_accepted: Tensor,
        num_checked: Tensor,
        counts: Tensor | None,
        is_pending: bool,
    ) -> None:
        """As Drafter.learn. Adds to counts [S, 2, methods, K]; `is_pending`: there may be lookups to learn from."""
        tensors = slots, token_ids, num_emitted, parents, path, num_accepted, num_checked
        # Kept alive until the call is over.
        held = [tensor.contiguous() for tensor in tensors]
        num_methods = 0 if counts is None else counts.shape[2]
        came = _Came(
            *(tensor.data_ptr() for tensor in held),
            None if counts is None else counts.data_ptr(),
            len(slots),
            num_decoding,
            path.shape[1],
            parents.shape[1] + 1,
            num_methods,
        )
        self._learn(self._lookup, came, is_pending)

    def propose(
        self,
        kept: SlotsStruct,
        prices: PricesStruct,
        *,
        slots: Tensor,
        proposing: Tensor,
        max_drafts: Tensor,
        max_depth: Tensor,
    ) -> tuple[tuple[Tensor, Tensor, Tensor], bool]:
        """Makes trees pending for those of `slots` [S] at `proposing` [P], which want at most so many drafts [P], so
        deep [P]. Returns what a DraftTree holds, and whether there was room for any draft."""
        num_asked = len(proposing)
        token_ids, parents = torch.empty(2, num_asked, self._tree_size, dtype=torch.int64)
        counts = torch.empty_like(proposing)
        asked = _Asked(*(tensor.data_ptr() for tensor in (slots, proposing, max_drafts, max_depth)), num_asked)
        outputs = (tensor.data_ptr() for tensor in (token_ids, parents, counts))
        return (token_ids, parents, counts), bool(self._propose(kept, self._lookup, asked, prices, *outputs))


def lookup_kernels(
    proposed: Proposed, sums: Sums, own: OwnSums, *, least_match: int, most_match: int, most_sure: float
) -> LookupKernels | None:
    """None where nothing can be compiled; who calls has a path of torch operations."""
    kernels = cpu_kernels()
    if kernels is None:
        return None
    return LookupKernels(
        kernels.library, proposed, sums, own, least_match=least_match, most_match=most_match, most_sure=most_sure
    )
