"""What is kept of each sequence, as the kernels read and write it. Must not know what they do with it."""

import ctypes

from torch import Tensor

_long, _pointer = ctypes.c_long, ctypes.c_void_p


class SlotsStruct(ctypes.Structure):
    """`Slots` of slots.h."""

    _fields_ = [
        *(
            (name, _pointer)
            for name in (
                "texts",
                "num_tokens",
                "max_num_tokens",
                "draft_ids",
                "draft_parents",
                "num_drafts",
                "finished",
            )
        ),
        *((name, _long) for name in ("length", "tree_size")),
    ]

    @classmethod
    def of(
        cls,
        *,
        token_ids: Tensor,
        num_tokens: Tensor,
        max_num_tokens: Tensor,
        draft_token_ids: Tensor,
        draft_parents: Tensor,
        num_drafts: Tensor,
        finished: Tensor,
    ) -> "SlotsStruct":
        """Tensors as in SequenceStates, which must outlive this: it holds their addresses."""
        tensors = token_ids, num_tokens, max_num_tokens, draft_token_ids, draft_parents, num_drafts, finished
        return cls(*(tensor.data_ptr() for tensor in tensors), token_ids.shape[1], draft_token_ids.shape[1])
