"""Memory in huge pages: a step reads all weights, and keys and values from all over the cache, in small pages about a
hundred thousand of them. Linux gives huge ones where it is asked to; elsewhere it is ordinary memory.
"""

import math
import mmap
from contextlib import suppress
from typing import Final

import torch
from torch import Tensor

# Of an arena; few pages are left half empty.
_CHUNK_BYTES: Final = 1 << 25
_ALIGNMENT: Final = 64


def zeros(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """As torch.zeros on CPU; no dimension may be 0. Memory is taken where it is first written."""
    # Shared memory, which is the default, has small pages.
    memory = mmap.mmap(-1, math.prod(shape) * dtype.itemsize, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(AttributeError, OSError):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=dtype).view(shape)


class Arena:
    """Tensors that stay, one behind the other: most weights are smaller than a huge page.

    The memory of one that is dropped is not given to others.
    """

    def __init__(self) -> None:
        self._free = torch.empty(0, dtype=torch.uint8)

    def hold(self, tensor: Tensor) -> Tensor:
        """A copy in this memory, contiguous."""
        size = -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT
        if len(self._free) < size:
            self._free = zeros((max(size, _CHUNK_BYTES),), torch.uint8)
        taken, self._free = self._free[: tensor.nbytes], self._free[size:]
        return taken.view(tensor.dtype).view(tensor.shape).copy_(tensor)
