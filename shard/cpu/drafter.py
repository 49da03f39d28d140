"""The compiled functions of drafter.c as functions of tensors: what a Drafter learns and proposes, on CPU.

Integers are int64, other numbers float32.
"""

import ctypes

import torch
from torch import Tensor

from shard.cpu.kernels import cpu_kernels
from shard.cpu.slots import SlotsStruct
from shard.speculation import Yielded
from shard.speculation.memory import Memory, OwnSums, Proposed, Sums

_int, _long, _float, _pointer = ctypes.c_int, ctypes.c_long, ctypes.c_float, ctypes.c_void_p


class _Ratio(ctypes.Structure):
    _fields_ = [
        *((name, _pointer) for name in ("above", "below", "prior")),
        ("size", _long),
        *((name, _float) for name in ("kept", "weight")),
    ]

    @classmethod
    def of(cls, sums: Sums) -> "_Ratio":
        above, below, prior, kept, weight = sums
        return cls(above.data_ptr(), below.data_ptr(), prior.data_ptr(), above.numel(), kept, weight)


class _Own(ctypes.Structure):
    _fields_ = [
        *((name, _pointer) for name in ("right", "said")),
        *((name, _float) for name in ("kept", "weight")),
    ]

    @classmethod
    def of(cls, own: OwnSums) -> "_Own":
        return cls(own.right.data_ptr(), own.said.data_ptr(), own.kept, own.weight)


class _Drafter(ctypes.Structure):
    _fields_ = [
        *((name, _pointer) for name in Proposed._fields),
        ("lookups", _Ratio),
        ("own", _Own),
        ("heads", _Ratio),
        *(
            (name, _long)
            for name in ("num_slots", "depth", "num_heads", "width", "tree_size", "least_match", "most_match")
        ),
        *((name, _float) for name in ("surest_lookup", "surest_head")),
    ]


class _Came(ctypes.Structure):
    _fields_ = [
        *(
            (name, _pointer)
            for name in ("slots", "tokens", "emitted", "parents", "path", "accepted", "checked", "counts")
        ),
        *((name, _long) for name in ("n", "num_decoding", "stride", "rows", "num_methods")),
    ]


class _Asked(ctypes.Structure):
    _fields_ = [
        *((name, _pointer) for name in ("slots", "places", "max_drafts", "max_depth", "ids", "probabilities")),
        ("n", _long),
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


class DrafterKernels:
    """Over one drafter's memory, which must outlive it."""

    def __init__(self, library: ctypes.CDLL, memory: Memory) -> None:
        self._learn = library.learn
        self._learn.argtypes = [ctypes.POINTER(_Drafter), ctypes.POINTER(_Came), _int, _int]
        self._propose = library.propose
        structs = SlotsStruct, _Drafter, _Asked, PricesStruct
        self._propose.argtypes = [*map(ctypes.POINTER, structs), *[_pointer] * 3]
        proposed = memory.proposed
        self._tree_size = proposed.methods.shape[1]
        self._drafter = _Drafter(
            *(tensor.data_ptr() for tensor in proposed),
            _Ratio.of(memory.lookups),
            _Own.of(memory.own),
            _Ratio.of(memory.heads),
            *proposed.ids.shape,
            *proposed.said.shape[1:],
            self._tree_size,
            memory.least_match,
            memory.most_match,
            memory.surest_lookup,
            memory.surest_head,
        )

    def learn(
        self,
        slots: Tensor,
        num_decoding: int,
        yielded: Yielded,
        counts: Tensor | None,
        *,
        from_lookups: bool,
        from_heads: bool,
    ) -> None:
        """As Drafter.learn. Adds to counts [S, 2, methods, K]; from whom there may be something to learn."""
        token_ids, num_emitted, parents, _, path, num_accepted, num_checked = yielded
        tensors = slots, token_ids, num_emitted, parents, path, num_accepted, num_checked
        # Kept alive until the call is over.
        held = [tensor.contiguous() for tensor in tensors]
        came = _Came(
            *(tensor.data_ptr() for tensor in held),
            None if counts is None else counts.data_ptr(),
            len(slots),
            num_decoding,
            path.shape[1],
            parents.shape[1] + 1,
            0 if counts is None else counts.shape[2],
        )
        self._learn(self._drafter, came, from_lookups, from_heads)

    def propose(
        self,
        kept: SlotsStruct,
        candidates: tuple[Tensor, Tensor] | None,
        prices: PricesStruct,
        *,
        slots: Tensor,
        proposing: Tensor,
        max_drafts: Tensor,
        max_depth: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Makes trees pending for those of `slots` [S] at `proposing` [P], which want at most so many drafts [P], so
        deep [P], and for which heads said `candidates`, ids and probabilities [P, H, W]. Returns what a DraftTree
        holds."""
        num_asked = len(proposing)
        token_ids, parents = torch.empty(2, num_asked, self._tree_size, dtype=torch.int64)
        tree = token_ids, parents, torch.empty_like(proposing)
        # Kept alive until the call is over.
        held = [tensor.contiguous() for tensor in candidates or ()]
        said = [tensor.data_ptr() for tensor in held] if held else [None, None]
        asked = (tensor.data_ptr() for tensor in (slots, proposing, max_drafts, max_depth))
        outputs = (tensor.data_ptr() for tensor in tree)
        self._propose(kept, self._drafter, _Asked(*asked, *said, num_asked), prices, *outputs)
        return tree


def drafter_library() -> ctypes.CDLL | None:
    """What DrafterKernels are made of; None where nothing can be compiled: there is a path of torch operations."""
    kernels = cpu_kernels()
    return kernels.library if kernels else None
