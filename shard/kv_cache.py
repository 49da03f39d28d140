"""Owns the bytes of keys and values: the pages of committed tokens and the buffer of a step's undecided ones.

Which block belongs to whom is decided elsewhere; here a block is a number. Block 0 is nobody's: tables are padded with
it and rejected rows may be written to it. Everything begins as zeros and stays finite, because masked attention still
multiplies what it does not see by zero: what overflowed in float16 is written as zero.

    pages      [layer, K or V, block, kv head, place in block, head_dim]
    step rows  [layer, row, K or V, kv head, head_dim]

Pages may hold numbers of 8 bits (e4m3); step rows are what they are rounded from when they are committed.

A page of one head is one contiguous row of block_size * head_dim elements, so that a gather of blocks into keys and
values that are contiguous per sequence and head is a single index_select.
"""

import torch
from torch import Tensor

from shard.cpu import huge_pages
from shard.cpu.kernels import kernels_for
from shard.cpu.spans import PagedSpans
from shard.cuda.kernels import commit_for


class KVCache:
    """Blocks 1..num_blocks of `block_size` tokens for the kv heads of this rank, and room for `max_step_rows`."""

    def __init__(
        self,
        *,
        num_layers: int,
        num_blocks: int,
        block_size: int,
        num_kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
        max_step_rows: int,
        page_dtype: torch.dtype | None = None,
    ) -> None:
        """`dtype` is that of keys and values in a step, `page_dtype` of committed ones; None: the same."""
        self.num_layers = num_layers
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.num_kv_heads = num_kv_heads
        self.head_dim = head_dim
        self.dtype = dtype
        self.page_dtype = page_dtype or dtype
        self.device = device
        self.max_step_rows = max_step_rows
        shape = num_layers, 2, num_blocks + 1, num_kv_heads, block_size, head_dim
        pages = (
            huge_pages.zeros(shape, self.page_dtype)
            if device.type == "cpu"
            else torch.zeros(shape, dtype=self.page_dtype, device=device)
        )
        self._pages = pages
        # As bytes where rows of the dtype cannot be copied by index.
        copied = pages if self.page_dtype == dtype else pages.view(torch.uint8)
        self._page_tokens = copied.view(num_layers, -1, head_dim)
        self._steps = torch.zeros((num_layers, max_step_rows, 2 * num_kv_heads, head_dim), dtype=dtype, device=device)
        # views by layer are made once: a view costs a microsecond, and a step needs them in every layer
        self._layer_pages = list(pages.view(num_layers, -1, block_size * head_dim).unbind())
        self._layer_tokens = list(self._page_tokens.unbind())
        self._layer_steps = list(self._steps.unbind())
        self._workspace = torch.empty(0, dtype=dtype, device=device)
        # offsets of the rows of one token in a layer's tokens, [2 * kv heads]
        plane = torch.arange(2, device=device)[:, None] * ((num_blocks + 1) * num_kv_heads * block_size)
        self._head_offsets = (plane + torch.arange(num_kv_heads, device=device) * block_size).view(-1)

    @staticmethod
    def bytes_per_block(
        *, num_layers: int, block_size: int, num_kv_heads: int, head_dim: int, dtype: torch.dtype
    ) -> int:
        """Bytes that one block takes on this rank, all layers together."""
        return num_layers * 2 * num_kv_heads * block_size * head_dim * dtype.itemsize

    @property
    def step_bytes(self) -> int:
        """What it takes beside its blocks: the rows of a step."""
        return self._steps.nbytes

    def pages(self, layer: int) -> Tensor:
        """[2 * (num_blocks + 1) * kv heads, block_size * head_dim]; a row is one head of one block (`page_index`)."""
        return self._layer_pages[layer]

    def step_rows(self, layer: int) -> Tensor:
        """[max_step_rows, 2 * kv heads, head_dim], keys before values."""
        return self._layer_steps[layer]

    def page_index(self, blocks: Tensor) -> Tensor:
        """Rows of `pages` that lay out blocks [S, B] as [K or V, S, kv head, B], flattened."""
        plane = torch.arange(2, device=self.device)[:, None, None, None] * (self.num_blocks + 1)
        head = torch.arange(self.num_kv_heads, device=self.device)[:, None]
        return ((plane + blocks[:, None, :]) * self.num_kv_heads + head).view(-1)

    def token_index(self, slots: Tensor) -> Tensor:
        """Where the keys and values of tokens at physical slots [M] lie in a layer's tokens: [M * 2 * kv heads]."""
        block = torch.div(slots, self.block_size, rounding_mode="floor")
        first = slots + block * (self.block_size * (self.num_kv_heads - 1))
        return (first[:, None] + self._head_offsets).view(-1)

    def write(self, layer: int, token_index: Tensor, kv: Tensor) -> None:
        """Write committed rows [M, 2 * kv heads, head_dim] at `token_index`."""
        self._layer_tokens[layer].index_copy_(0, token_index, self._as_kept(kv.reshape(-1, self.head_dim)))

    def commit(self, rows: Tensor, physical_slots: Tensor) -> None:
        """Copy step rows [M] of all layers to their physical slots [M]; a row that was rejected goes to slot 0."""
        kept = self._steps.index_select(1, rows).view(self.num_layers, -1, self.head_dim)
        self._page_tokens.index_copy_(1, self.token_index(physical_slots), self._as_kept(kept))

    def _as_kept(self, kv: Tensor) -> Tensor:
        if self.page_dtype == self.dtype:
            return kv
        # What is too large would become no number.
        most = torch.finfo(self.page_dtype).max
        return kv.clamp(-most, most).to(self.page_dtype).view(torch.uint8)

    def commit_paths(self, spans: PagedSpans, path: Tensor, num_kept: Tensor, physical_slots: Tensor) -> None:
        """The same where kernels read the pages: of each of the first S spans the first `num_kept` [S] rows of its
        `path` [S, R]; `physical_slots` [N] are of all rows of the step."""
        kernels = kernels_for(self.dtype, self.device)
        assert kernels is not None
        kernels.commit(self._steps, self._pages, spans, path, num_kept.contiguous(), physical_slots)

    def commit_spans(
        self, first_rows: Tensor, num_rows: Tensor, path: Tensor, num_kept: Tensor, physical_slots: Tensor
    ) -> None:
        """The same of S spans which have `num_rows` [S] rows each, from their `first_rows` [S] on. Behind what is kept
        a path may name rows that its span does not have."""
        if commit := commit_for(self.dtype, self.device):
            commit(
                self._steps,
                self._pages,
                first_rows=first_rows,
                path=path,
                num_kept=num_kept,
                physical_slots=physical_slots,
            )
            return
        rows = first_rows[:, None] + torch.minimum(path, num_rows[:, None] - 1)
        is_kept = torch.arange(path.shape[1], device=path.device) < num_kept[:, None]
        physical = torch.where(is_kept, physical_slots[rows], 0)
        self.commit(rows.flatten(), physical.flatten())

    def workspace(self, num_elements: int) -> Tensor:
        """A flat buffer that the layers and groups of a step use in turn; its content is not kept."""
        if self._workspace.numel() < num_elements:
            self._workspace = torch.zeros(num_elements, dtype=self.dtype, device=self.device)
        return self._workspace[:num_elements]
