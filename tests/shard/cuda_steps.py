"""Random steps for the Triton attention kernel, and what the torch path makes of them in float64.

Needs neither a GPU nor Triton.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from shard import attention
from shard.attention_groups import Span
from shard.attention_spec import AttentionSpec
from shard.cuda.interface import Attend
from shard.cuda.spans import DeviceSpans
from shard.forward_batch import ForwardBatch
from shard.kv_cache import KVCache

# Of a result in 16 bit that is rounded once, from weights that were rounded once.
TOLERANCE = {
    torch.bfloat16: {"rtol": 2**-7, "atol": 1e-2},
    torch.float16: {"rtol": 2**-9, "atol": 2e-3},
    torch.float32: {"rtol": 1e-5, "atol": 1e-5},
}
# Rows behind those of the step, as a captured step has them.
_SPARE_ROWS = 3
_UNTOUCHED = 777.0
# In e4m3.
_NAN_FP8 = 0x7F


@dataclass(frozen=True, slots=True)
class Shape:
    kv_heads: int
    group: int
    dim: int
    block_size: int = 16
    spec: AttentionSpec = field(default_factory=lambda: AttentionSpec(scale=0.2))

    @property
    def heads(self) -> int:
        return self.kv_heads * self.group


@dataclass(frozen=True, slots=True)
class Step:
    """Spans of random rows behind random committed tokens. qkv [N, q heads + 2 * kv heads, dim], committed of each span
    [length, 2 * kv heads, dim]: of some 16-bit type, in float32."""

    shape: Shape
    spans: list[Span]
    num_steps: int
    qkv: Tensor
    committed: list[Tensor]
    positions: Tensor
    ancestors: Tensor | None
    num_blocks: int

    @property
    def num_step_rows(self) -> int:
        return sum(span.num_rows for span in self.spans[: self.num_steps])


def random_step(
    shape: Shape,
    *,
    steps: Sequence[tuple[int, int]],
    chunks: Sequence[tuple[int, int]] = (),
    trees: bool = False,
    dtype: torch.dtype = torch.bfloat16,
    seed: int = 0,
) -> Step:
    """Spans of (committed length, rows), over blocks in any order."""
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)

    def draw(count: int, heads: int) -> Tensor:
        return torch.randn(count, heads, shape.dim, generator=generator).to(dtype).float()

    sizes = [*steps, *chunks]
    num_blocks = [-(-(length + rows) // shape.block_size) for length, rows in sizes]
    order = rng.sample(range(1, sum(num_blocks) + 1), sum(num_blocks))
    spans, positions = [], []
    most_rows = max((rows for _, rows in steps), default=0)
    # What is said of rows that a span does not have must not matter.
    ancestors = torch.rand(len(steps), most_rows, most_rows, generator=generator) < 0.5
    for s, ((length, rows), count) in enumerate(zip(sizes, num_blocks, strict=True)):
        is_step = s < len(steps)
        spans.append(Span(rows, [order.pop() for _ in range(count)], direct=not is_step))
        paths = [[0]]
        for row in range(1, rows):
            paths.append([*(rng.choice(paths) if is_step and trees else paths[-1]), row])
        positions += [length + len(path) - 1 for path in paths]
        if is_step:
            ancestors[s, :rows] = False
            for row, path in enumerate(paths):
                ancestors[s, row, path] = True
    return Step(
        shape,
        spans,
        len(steps),
        draw(sum(rows for _, rows in sizes), shape.heads + 2 * shape.kv_heads),
        [draw(length, 2 * shape.kv_heads) for length, _ in sizes],
        torch.tensor(positions),
        ancestors if trees else None,
        sum(num_blocks),
    )


def reference(step: Step, page_dtype: torch.dtype | None = None) -> Tensor:
    """[N, q heads, dim] by the torch path, in float64, of keys and values as pages hold them."""
    if page_dtype is not None:
        kv_heads = step.shape.kv_heads
        own = step.qkv[:, -2 * kv_heads :].to(page_dtype).float()
        qkv = torch.cat([step.qkv[:, : -2 * kv_heads], own], 1)
        step = replace(step, qkv=qkv, committed=[kv.to(page_dtype).float() for kv in step.committed])
    cache = _cache(step, torch.float64, torch.device("cpu"))
    _fill(cache, step)
    batch = ForwardBatch.build(
        token_ids=torch.zeros_like(step.positions),
        positions=step.positions,
        spans=step.spans,
        cache=cache,
        ancestors=step.ancestors,
    )
    out = attention.attend(step.qkv.double(), layer=0, batch=batch, cache=cache, spec=step.shape.spec)
    return out.view(-1, step.shape.heads, step.shape.dim)


def check(
    attend: Attend,
    step: Step,
    dtype: torch.dtype,
    device: torch.device,
    page_dtype: torch.dtype | None = None,
    *,
    by_kernel: bool = False,
    overflowed: int | None = None,
) -> None:
    """AssertionError unless the kernel gives what the torch path does, and writes and reads nothing else.

    What must not be read is NaN: blocks of nobody, block 0, places behind a sequence's last token, rows that are not of
    the step. What must not be written has a value of its own. There are places for two more spans. `by_kernel`: queries
    and keys are rotated by the kernel. `overflowed`: a step row whose keys and values are infinite, which are to be
    as zeros.
    """
    cache = _cache(step, dtype, device, page_dtype)
    if page_dtype is None:
        cache.pages(0).fill_(torch.nan)
    else:
        cache.pages(0).view(torch.uint8).fill_(_NAN_FP8)
    cache.step_rows(0).fill_(_UNTOUCHED)
    _fill(cache, step)
    kv_heads = step.shape.kv_heads
    num_rows, num_step_rows = len(step.qkv), step.num_step_rows
    qkv = torch.nn.functional.pad(step.qkv, (0, 0, 0, 0, 0, _SPARE_ROWS), value=torch.nan).to(device, dtype)
    if overflowed is not None:
        qkv[overflowed, -2 * kv_heads :] = torch.inf
    direct = slots_of(step)[num_step_rows:].to(device)
    cache.write(0, cache.token_index(direct), qkv[num_step_rows:num_rows, -2 * kv_heads :])
    out = torch.full((len(qkv), step.shape.heads, step.shape.dim), _UNTOUCHED, dtype=dtype, device=device)
    rotation = None
    rotated = qkv
    if by_kernel:
        angles = torch.rand(len(qkv), 1, step.shape.dim // 2) * 6
        cos, sin = (torch.cat([f(angles), f(angles)], 2).to(device, dtype) for f in (torch.cos, torch.sin))
        sin[..., : step.shape.dim // 2] *= -1
        rotation = cos, sin
        heads, rest = qkv.split([step.shape.heads + kv_heads, kv_heads], 1)
        turned = heads.float() * cos.float() + heads.float().roll(step.shape.dim // 2, -1) * sin.float()
        rotated = torch.cat([turned.to(dtype), rest], 1)
    rotated = rotated[:num_rows].nan_to_num(0.0, 0.0, 0.0)
    step = replace(step, qkv=rotated.float().cpu())
    pages = cache.pages(0).clone()
    spans = device_spans(step, device)
    attend(
        qkv,
        cache.pages(0),
        spans,
        out=out,
        step_rows=cache.step_rows(0),
        block_size=step.shape.block_size,
        spec=step.shape.spec,
        rotation=rotation,
    )
    torch.testing.assert_close(out[:num_rows].double().cpu(), reference(step, page_dtype), **TOLERANCE[dtype])
    assert (out[num_rows:] == _UNTOUCHED).all()
    stored, wanted = cache.step_rows(0)[:num_step_rows], rotated[:num_step_rows, -2 * kv_heads :]
    if by_kernel:
        # A multiplication and an addition are rounded once or twice.
        torch.testing.assert_close(stored.float(), wanted.float(), **TOLERANCE[dtype])
    else:
        assert torch.equal(stored, wanted)
    assert (cache.step_rows(0)[num_step_rows:] == _UNTOUCHED).all()
    assert torch.equal(cache.pages(0).view(torch.uint8), pages.view(torch.uint8))


def device_spans(step: Step, device: torch.device) -> DeviceSpans:
    """With places for two more step spans, one of them with a table longer than any other, and for more rows."""
    tables, num_rows = [span.block_ids for span in step.spans], [span.num_rows for span in step.spans]
    longest = max(len(table) for table in tables)
    ancestors = step.ancestors
    if ancestors is None and step.num_steps:
        most_rows = max(num_rows[: step.num_steps])
        ancestors = torch.ones(1, most_rows, most_rows, dtype=torch.bool).tril()
    return DeviceSpans.build(
        tables=[*tables[: step.num_steps], [0] * (longest + 5), [0], *tables[step.num_steps :]],
        num_rows=[*num_rows[: step.num_steps], 0, 0, *num_rows[step.num_steps :]],
        num_steps=step.num_steps + 2 if step.num_steps else 0,
        positions=torch.nn.functional.pad(step.positions, (0, _SPARE_ROWS), value=1 << 30).to(device),
        ancestors=None if ancestors is None else ancestors.to(device),
        block_size=step.shape.block_size,
    )


def slots_of(step: Step) -> Tensor:
    """The physical slot of each row, [N]."""
    size = step.shape.block_size
    tables = [span.block_ids for span in step.spans for _ in range(span.num_rows)]
    places = zip(tables, step.positions.tolist(), strict=True)
    return torch.tensor([table[position // size] * size + position % size for table, position in places])


def _cache(step: Step, dtype: torch.dtype, device: torch.device, page_dtype: torch.dtype | None = None) -> KVCache:
    return KVCache(
        num_layers=1,
        num_blocks=step.num_blocks + 2,
        block_size=step.shape.block_size,
        num_kv_heads=step.shape.kv_heads,
        head_dim=step.shape.dim,
        dtype=dtype,
        device=device,
        max_step_rows=step.num_step_rows + _SPARE_ROWS,
        page_dtype=page_dtype,
    )


def _fill(cache: KVCache, step: Step) -> None:
    for span, committed in zip(step.spans, step.committed, strict=True):
        place = torch.arange(len(committed))
        slots = torch.tensor(span.block_ids)[place // cache.block_size] * cache.block_size + place % cache.block_size
        cache.write(0, cache.token_index(slots.to(cache.device)), committed.to(cache.device, cache.dtype))
