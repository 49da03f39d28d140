"""A stand-in for CUDA graphs on CPU: the operations of a step are written down, and done again on the same tensors.

As with a graph nothing of the host's code runs again, so whatever it knew when the step was recorded stays as it was.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, is_tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from shard.attention_spec import AttentionSpec
from shard.cuda.spans import FIRST_ROW, TABLE, DeviceSpans
from shard.report import Outcome


def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever is made from now on looks at no values and works by torch's operations alone."""
    for module in ("shard.sampler", "shard.medusa.best"):
        monkeypatch.setattr(f"{module}.best_kernels", lambda: None)
    look_at_nothing(monkeypatch)
    for module in ("shard.attention", "shard.forward_batch", "shard.device_step"):
        monkeypatch.setattr(f"{module}.attention_for", lambda dtype, device: attend)


def look_at_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever is made from now on looks at no values."""
    for module in ("shard.states", "shard.speculation.drafter", "shard.sampler", "shard.filters"):
        monkeypatch.setattr(f"{module}.is_readable", lambda device: False)


class _Recorder(TorchDispatchMode):
    """Writes down what is done, and what was in the memory that it overwrites."""

    def __init__(self) -> None:
        super().__init__()
        self.done: list[tuple[Any, Any, Any, Any]] = []
        self._before: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten.index_put_.default:
            made = {t.untyped_storage().data_ptr() for done in self.done for t in tree_leaves(done[3]) if is_tensor(t)}
            is_made = args[2].untyped_storage().data_ptr() in made
            assert args[2].dim() or is_made, "a number of the host, which index_put_ copies, in a captured step"
        for position, argument in enumerate(func._schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                written = args[position] if position < len(args) else kwargs.get(argument.name)
                if isinstance(written, Tensor):
                    storage = written.untyped_storage()
                    self._before.setdefault(storage.data_ptr(), (storage, storage.clone()))
        result = func(*args, **kwargs)
        self.done.append((func, args, kwargs, result))
        return result

    def undo(self) -> None:
        for storage, before in self._before.values():
            storage.copy_(before)


class RecordedCapture:
    """A `shard.captured_steps.Capture` with room for `most` steps."""

    PROPOSING_NS = 4

    def __init__(self, most: int = 1000) -> None:
        self.most = most
        self.num_captured = self.num_replayed = self.num_asked_for_room = 0

    def __call__(self, run: Callable[[], Outcome]) -> tuple[Outcome, Callable[[], None]]:
        recorder = _Recorder()
        # Nothing of the host's memory is there when a graph runs.
        refused = mock.Mock(side_effect=AssertionError("a copy from the host in a captured step"))
        makers = dict.fromkeys(("tensor", "as_tensor", "from_numpy", "frombuffer"), refused)
        with mock.patch.multiple(torch, **makers), recorder:
            outcome = run()
        recorder.undo()
        self.num_captured += 1

        def replay() -> None:
            self.num_replayed += 1
            for func, args, kwargs, result in recorder.done:
                _do_again(func, args, kwargs, result)

        return outcome, replay

    def timer(self) -> "_Marks":
        return _Marks()

    def has_room(self) -> bool:
        self.num_asked_for_room += 1
        return self.num_captured < self.most


class _Marks:
    """A clock by which everything takes as long."""

    def __init__(self) -> None:
        self.marks = torch.zeros(2, dtype=torch.int64)

    @contextmanager
    def running(self) -> Iterator[None]:
        self.marks[0] += 7
        self.marks[1] = self.marks[0] + RecordedCapture.PROPOSING_NS
        yield


def _do_again(func: Any, args: Any, kwargs: Any, result: Any) -> None:
    again = func(*args, **kwargs)
    given = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
    for old, new in zip(tree_leaves(result), tree_leaves(again), strict=True):
        # A view, or what was changed in place, is where it was.
        if isinstance(old, Tensor) and old.untyped_storage().data_ptr() not in given:
            old.copy_(new)


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
    """`shard.cuda.interface.Attend` in torch's operations, the same ones whatever is in the tensors: each row looks at
    all places of its table and at all rows of the step, most of them hidden."""
    assert spec.window is None
    assert spec.softcap is None
    num_rows, num_heads, dim = out.shape
    kv_heads = (qkv.shape[1] - num_heads) // 2
    if rotation is not None:
        cos, sin = rotation
        heads = qkv[:, : num_heads + kv_heads]
        qkv = torch.cat([heads * cos + heads.roll(dim // 2, -1) * sin, qkv[:, num_heads + kv_heads :]], 1)
    queries, keys, values = qkv.split([num_heads, kv_heads, kv_heads], 1)
    stored = min(num_rows, len(step_rows))
    step_rows[:stored] = qkv[:stored, num_heads:]

    index = torch.arange(num_rows)
    span = torch.searchsorted(spans.rows[:, FIRST_ROW].contiguous(), index.int(), right=True) - 1
    first = spans.rows[span, FIRST_ROW].long()
    is_step = span < spans.num_steps
    blocks = spans.tables[spans.rows[span, TABLE].long()].long()
    paged = (
        pages.view(2, -1, kv_heads, block_size, dim)[:, blocks].transpose(3, 2).reshape(2, num_rows, kv_heads, -1, dim)
    )
    place = torch.arange(paged.shape[3])
    root = spans.positions[first]
    last = torch.where(is_step, root - 1, spans.positions)
    in_pages = place <= last[:, None]

    is_own = torch.zeros(num_rows, num_rows, dtype=torch.bool)
    if spans.ancestors is not None:
        most = spans.ancestors.shape[1]
        ways = spans.ancestors.expand(max(spans.num_steps, 1), -1, -1).bool()
        place_of = (index - first).clamp_max(most - 1)
        own = ways[span.clamp_max(len(ways) - 1)[:, None], place_of[:, None], place_of[None, :]]
        is_own = own & (span[:, None] == span[None, :]) & is_step[:, None]

    group = num_heads // kv_heads
    asked = queries.reshape(num_rows, kv_heads, group, dim) * spec.scale
    to_pages = torch.einsum("nkgd,nkld->nkgl", asked, paged[0])
    to_own = torch.einsum("nkgd,mkd->nkgm", asked, keys)
    to_pages = to_pages.masked_fill(~in_pages[:, None, None, :], -torch.inf)
    to_own = to_own.masked_fill(~is_own[:, None, None, :], -torch.inf)
    weights = torch.cat([to_pages, to_own], 3).softmax(3)
    of_pages, of_own = weights.split([to_pages.shape[3], num_rows], 3)
    mixed = torch.einsum("nkgl,nkld->nkgd", of_pages, paged[1]) + torch.einsum("nkgm,mkd->nkgd", of_own, values)
    out.copy_(mixed.reshape(num_rows, num_heads, dim))
