"""Attention of a step's rows by Triton kernels. Owns how the work is cut into programs: tiles of rows and keys, splits.

The grid follows from what the host knows (number of spans, most rows, width of the block tables) and nothing is read
back, so a call can be captured in a CUDA graph and replayed with other positions, lengths and blocks. Sizes of
tiles and splits are chosen from a sweep on an H200 with the heads of Llama-3.1-8B (bench/RESULTS.md, section 9).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from shard.attention_spec import AttentionSpec
from shard.cuda.attention_kernels import attend_spans, merge_splits
from shard.cuda.device import early, is_roomy, num_processors, power_of_two
from shard.cuda.spans import DeviceSpans

_LOG2_E = 1 / math.log(2)
# The least that a matrix product takes of each of its sizes.
_LEAST_TILE = 16
# A tile of keys, and one of values, in bytes: a few are on their way at once.
_TILE_BYTES, _MOST_KEYS = 1 << 14, 128
# Registers hold a tile of rows' sums, in float32.
_MOST_ROWS, _MOST_SUMS = 128, 1 << 14
# More need the room of shared memory for their products.
_FEW_ROWS = 32
# Programs that a multiprocessor works on at the same time.
_PROGRAMS_PER_PROCESSOR = 2
# Fewer keys would not pay for the merging.
_LEAST_KEYS_OF_SPLIT, _MOST_SPLITS = 64, 64


@dataclass(frozen=True, slots=True)
class Tiles:
    """How much a program takes at once; `rows` are folded ones, of all heads of a kv group."""

    rows: int
    keys: int
    dim: int
    # Of the pipeline of loads.
    num_stages: int

    @classmethod
    def of(cls, *, num_rows: int, dim: int, dtype: torch.dtype, is_roomy: bool) -> "Tiles":
        """For spans of about `num_rows` folded rows."""
        padded = power_of_two(dim, least=_LEAST_TILE)
        # Without tensor cores the factors of a product lie in registers too.
        most_rows = _LEAST_TILE if dtype == torch.float32 else min(_MOST_ROWS, _MOST_SUMS // padded)
        keys = min(_MOST_KEYS, _TILE_BYTES // (padded * dtype.itemsize))
        rows = min(power_of_two(num_rows, least=_LEAST_TILE), most_rows)
        return cls(rows, keys, padded, num_stages=5 if rows <= _FEW_ROWS or is_roomy else 3)

    @property
    def num_warps(self) -> int:
        return 8 if self.rows >= 64 else 4


@dataclass(frozen=True, slots=True)
class Part:
    """`count` spans from the `first` on, of up to `most_rows` rows each and of about `typical_rows`: all step spans, or
    all direct ones."""

    first: int
    count: int
    most_rows: int
    typical_rows: int
    is_step: bool


def attend(
    qkv: Tensor,
    pages: Tensor,
    spans: DeviceSpans,
    *,
    out: Tensor,
    step_rows: Tensor,
    block_size: int,
    spec: AttentionSpec,
    rotation: tuple[Tensor, Tensor] | None = None,
) -> None:
    """As `shard.cuda.interface.Attend` says."""
    assert qkv.stride()[1:] == (qkv.shape[2], 1)
    assert rotation is None or spans.num_spans == spans.num_steps
    num_steps, num_chunks = spans.num_steps, spans.num_spans - spans.num_steps
    # What is known without looking at values: a step has few drafts for each of many sequences.
    mean = -(-spans.num_step_rows // max(1, num_steps))
    steps = Part(0, num_steps, spans.most_step_rows, mean, is_step=True)
    chunks = Part(num_steps, num_chunks, spans.most_direct_rows, spans.most_direct_rows, is_step=False)
    for part in (steps, chunks):
        if part.count:
            _attend_part(part, qkv, pages, spans, out, step_rows, block_size, spec, rotation)


def _attend_part(
    part: Part,
    qkv: Tensor,
    pages: Tensor,
    spans: DeviceSpans,
    out: Tensor,
    step_rows: Tensor,
    block_size: int,
    spec: AttentionSpec,
    rotation: tuple[Tensor, Tensor] | None,
) -> None:
    num_heads, dim = out.shape[1:]
    count, most_rows = part.count, part.most_rows
    kv_heads = (qkv.shape[1] - num_heads) // 2
    group = num_heads // kv_heads
    folded = part.typical_rows * group
    if not part.is_step and folded > _LEAST_TILE:
        # Prompts have any number of rows: each kernel more would be compiled while some request waits.
        folded = _MOST_ROWS
    tiles = Tiles.of(num_rows=folded, dim=dim, dtype=qkv.dtype, is_roomy=is_roomy(qkv.device))
    # Programs beyond a span's rows end at once.
    num_tiles = -(-most_rows * group // tiles.rows)
    num_busy = -(-part.typical_rows * group // tiles.rows) * kv_heads * count
    most_keys = min(spans.most_blocks * block_size, spec.window or 1 << 30)
    num_splits = _num_splits(num_busy, most_keys, qkv.device)
    mixes = log_sums = None
    if num_splits > 1:
        mixes = out.new_empty((num_splits, count * most_rows, num_heads, dim), dtype=torch.float32)
        log_sums = mixes.new_empty(mixes.shape[:-1])
    scale, cap = _constants(spec)
    ancestors = spans.ancestors if part.is_step else None
    attend_spans[num_tiles, kv_heads * num_splits, count](
        qkv,
        pages,
        step_rows,
        out,
        mixes,
        log_sums,
        spans.rows,
        spans.tables,
        spans.positions,
        ancestors,
        *(rotation or (None, None)),
        part.first,
        spans.tables.stride(0),
        0 if ancestors is None or len(ancestors) == 1 else ancestors.stride(0),
        most_rows,
        num_splits,
        qkv.stride(0),
        pages.numel() // 2,
        KV_HEADS=kv_heads,
        GROUP=group,
        DIM=dim,
        BLOCK_SIZE=block_size,
        IS_STEP=part.is_step,
        WINDOW=spec.window,
        SCALE=scale,
        CAP=cap,
        TILE_ROWS=tiles.rows,
        TILE_KEYS=tiles.keys,
        PADDED_DIM=tiles.dim,
        **early(qkv.device),
        num_warps=tiles.num_warps,
        num_stages=tiles.num_stages,
    )
    if num_splits > 1:
        merge_splits[most_rows, num_heads, count](
            mixes,
            log_sums,
            out,
            spans.rows,
            part.first,
            most_rows,
            num_splits,
            DIM=dim,
            SPLITS=power_of_two(num_splits, least=_LEAST_TILE),
            PADDED_DIM=tiles.dim,
            **early(qkv.device),
        )


def _constants(spec: AttentionSpec) -> tuple[float, float | None]:
    """SCALE and CAP of `attend_spans`."""
    if spec.softcap is None:
        return spec.scale * _LOG2_E, None
    return 2 * _LOG2_E * spec.scale / spec.softcap, spec.softcap * _LOG2_E


def _num_splits(num_programs: int, most_keys: int, device: torch.device) -> int:
    """As many as fill the device, if the context is long enough for them."""
    wanted = _PROGRAMS_PER_PROCESSOR * num_processors(device) // num_programs
    return max(1, min(wanted, most_keys // _LEAST_KEYS_OF_SPLIT, _MOST_SPLITS))
