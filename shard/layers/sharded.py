"""Owns how a layer says which parts of which checkpoint tensors its parameters hold. Knows no file and no name."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from shard.layers.quantize import Quantization
from shard.partition import Slice


@dataclass(frozen=True, slots=True)
class Piece:
    """One checkpoint tensor's share of a local parameter: `rows` of dimension `dim`; other dimensions are whole.

    The pieces of a parameter follow one another along `dim`.
    """

    full_shape: tuple[int, ...]
    dim: int
    rows: Slice

    @property
    def local_shape(self) -> tuple[int, ...]:
        return (*self.full_shape[: self.dim], self.rows.size, *self.full_shape[self.dim + 1 :])


class Module(nn.Module):
    """A module whose call is its forward: no hooks are used here, and looking for them costs 1 µs a call."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "forward" in cls.__dict__:
            cls.__call__ = cls.__dict__["forward"]  # type: ignore[method-assign]


class ShardedModule(Module):
    """A layer with parameters that begin on the meta device and are filled from a checkpoint, slice by slice."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces: dict[str, tuple[Piece, ...]] = {}

    def declare(self, name: str, pieces: tuple[Piece, ...], dtype: torch.dtype) -> None:
        """Register parameter `name` as the concatenation of `pieces`."""
        shape = list(pieces[0].local_shape)
        shape[pieces[0].dim] = sum(piece.rows.size for piece in pieces)
        self.pieces[name] = pieces
        self.fill(name, torch.empty(shape, dtype=dtype, device="meta"))

    def fill(self, name: str, value: Tensor) -> None:
        """Give parameter `name` its final value."""
        self.register_parameter(name, nn.Parameter(value, requires_grad=False))

    def drop(self, name: str) -> None:
        """Forget parameter `name`: another form of it is in use."""
        self.register_parameter(name, None)

    def finish(self, quantize: Quantization | None = None) -> None:
        """Called once, when all parameters of the model are filled. `quantize`: what matrices become that can."""
