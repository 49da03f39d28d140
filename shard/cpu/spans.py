"""Where the rows of a step stand in the paged cache, as the kernels read it. Must not know what they do with it."""

import ctypes
from array import array

import torch
from torch import Tensor

# Rows of a prompt chunk that are attended at once: they share one pass over the keys.
_CHUNK_ROWS = 16

_long, _pointer = ctypes.c_long, ctypes.c_void_p


class SpansStruct(ctypes.Structure):
    """`Spans` of attention.h."""

    _fields_ = [
        *((name, _pointer) for name in ("tables", "begins", "firsts", "counts", "trees", "positions", "ancestors")),
        *((name, _long) for name in ("n", "most_rows")),
    ]


class PagedSpans:
    """Where the spans of a step stand: their block tables, rows and committed lengths, as the kernels read them.

    Step spans come first. Prompt chunks are cut into spans of a few rows, so that threads share them and the scores of
    one fit the cache.
    """

    def __init__(
        self,
        *,
        tables: list[list[int]],
        num_rows: list[int],
        num_steps: int,
        positions: Tensor,
        ancestors: Tensor | None,
    ) -> None:
        """Spans of `num_rows` rows each, one after another; the first `num_steps` are trees, the others prompt chunks.

        positions [N] int64. `ancestors` [num_steps or 1, R, R] bool: row j of a span is row r or lies on its way from
        the first row; None if there is no tree.
        """
        assert tables
        most_rows = 0 if ancestors is None else ancestors.shape[1]
        tree = 0 if ancestors is None or len(ancestors) == 1 else most_rows * most_rows
        # One after another: those of many short texts would be padded to that of a long one.
        block_ids = array("i")
        begins: list[int] = []
        firsts: list[int] = []
        counts: list[int] = []
        trees: list[int] = []
        first = 0
        for index, (table, count) in enumerate(zip(tables, num_rows, strict=True)):
            is_step = index < num_steps
            for start in [0] if is_step else range(0, count, _CHUNK_ROWS):
                begins.append(len(block_ids))
                firsts.append(first + start)
                counts.append(count if is_step else min(_CHUNK_ROWS, count - start))
                trees.append(index * tree if is_step else -1)
            block_ids += array("i", table)
            first += count
        self.num_step_rows = sum(num_rows[:num_steps])
        self.positions = positions.contiguous()
        # Kept alive with the addresses that point into them.
        self._block_ids = block_ids
        self._numbers = torch.tensor([begins, firsts, counts, trees], dtype=torch.int32)
        self._ancestors = None if ancestors is None else ancestors.contiguous()
        trees_address = None if self._ancestors is None else self._ancestors.data_ptr()
        self.struct = SpansStruct(
            block_ids.buffer_info()[0],
            *(numbers.data_ptr() for numbers in self._numbers),
            self.positions.data_ptr(),
            trees_address,
            len(firsts),
            most_rows,
        )
