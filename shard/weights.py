"""Owns filling a model with this rank's slices of a checkpoint, and the proof that nothing is missing or left over.

The layers say which slices they hold (`ShardedModule.pieces`), a family's name table says what the checkpoint calls
them. Patterns match whole path components: `*` stands for one of them, `**` for any number.
"""

import re
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

import torch
from torch import Tensor, nn

from shard.checkpoint import CheckpointError, Tensors
from shard.layers.quantize import Quantization
from shard.layers.sharded import Piece, ShardedModule

# (bytes of parameters filled so far, bytes in all), this rank's
Progress = Callable[[int, int], None]
# path of a layer in our model -> paths of the checkpoint's layers that its pieces come from
NameTable = Mapping[str, tuple[str, ...]]
_DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
# Keys of the checkpoint and the pieces they are of a parameter, which is declared so.
_Sources = tuple[list[tuple[str, Piece]], nn.Parameter]


def fill_model(
    model: nn.Module,
    checkpoint: Tensors,
    *,
    names: NameTable,
    ignored: Sequence[str],
    device: torch.device,
    quantize: Quantization | None = None,
    progress: Progress | None = None,
) -> None:
    """Fill every declared parameter. A layer finishes when it is full: in 8 bits a model never takes the memory that it
    takes in 16. CheckpointError names the first tensor at fault."""
    layers = [(path, layer) for path, layer in model.named_modules() if isinstance(layer, ShardedModule)]
    wanted = [
        (layer, {name: _sources(path, name, names, pieces) for name, pieces in layer.pieces.items()})
        for path, layer in layers
    ]
    _prove_complete(
        checkpoint, [source for _, by_name in wanted for part in by_name.values() for source in part], ignored
    )
    total = sum(layer.get_parameter(name).nbytes for layer, by_name in wanted for name in by_name)
    sources = [(part, layer.get_parameter(name)) for layer, by_name in wanted for name, part in by_name.items()]
    values = _read_ahead(partial(_read, checkpoint, device), sources, num_threads=_num_threads(device))
    done = 0
    for layer, by_name in wanted:
        for name in by_name:
            value = next(values)
            layer.fill(name, value)
            done += value.nbytes
            if progress is not None:
                progress(done, total)
        layer.finish(quantize)


def _num_threads(device: torch.device) -> int:
    """That read. For a CPU one is enough, and others would have teams of their own (see shard.device_thread)."""
    return 1 if device.type == "cpu" else 8


def _read_ahead(read: Callable[[_Sources], Tensor], wanted: list[_Sources], *, num_threads: int) -> Iterator[Tensor]:
    """Of each in its order. With several threads as many are read at a time, and no more are kept."""
    if num_threads == 1:
        yield from map(read, wanted)
        return
    with ThreadPoolExecutor(num_threads) as pool:
        begun: deque[Future[Tensor]] = deque()
        for sources in wanted:
            begun.append(pool.submit(read, sources))
            if len(begun) == num_threads:
                yield begun.popleft().result()
        while begun:
            yield begun.popleft().result()


@torch.inference_mode()
def _read(checkpoint: Tensors, device: torch.device, wanted: _Sources) -> Tensor:
    """The pieces side by side, padded as declared, on the device."""
    sources, declared = wanted
    # Not zeros_like: of a tensor on the meta device that imports sympy, which takes half a second.
    value = torch.zeros(declared.shape, dtype=declared.dtype, device=device)
    offset = 0
    for key, piece in sources:
        rows = piece.rows
        real = checkpoint.read(key, dim=piece.dim, start=rows.start, stop=rows.stop)
        if real.dtype not in _DTYPES:
            # Numbers of 8 bits mean something only with their scales.
            raise CheckpointError(f"tensor {key} is of {real.dtype}; weights in 16, 32 or 64 bit floats are served")
        value.narrow(piece.dim, offset, rows.stop - rows.start).copy_(real)
        offset += rows.size
    return value


def _sources(path: str, parameter: str, names: NameTable, pieces: tuple[Piece, ...]) -> list[tuple[str, Piece]]:
    """The checkpoint's key of each piece of the parameter `parameter` of the layer at `path`."""
    for pattern, targets in names.items():
        match = _compile(pattern).fullmatch(path)
        if match:
            keys = []
            for target in targets:
                for component in match.groups():
                    target = target.replace("*", component, 1)
                keys.append(f"{target}.{parameter}")
            return list(zip(keys, pieces, strict=True))
    raise AssertionError(f"the name table has no entry for {path}")


def _prove_complete(checkpoint: Tensors, sources: list[tuple[str, Piece]], ignored: Sequence[str]) -> None:
    """Every wanted tensor is there in the shape that the configuration asks for, and there is no other."""
    for key, piece in sources:
        found = checkpoint.shape(key)
        if found != piece.full_shape:
            expected = list(piece.full_shape)
            raise CheckpointError(
                f"tensor {key} has shape {list(found)}, config.json asks for {expected}; they are not of one model"
            )
    skip = [_compile(pattern) for pattern in ignored]
    extra = checkpoint.names() - {key for key, _ in sources}
    for key in sorted(extra):
        if not any(pattern.fullmatch(key) for pattern in skip):
            raise CheckpointError(f"tensor {key} is in the weights files but the model has no place for it")


def _compile(pattern: str) -> re.Pattern[str]:
    return re.compile(re.escape(pattern).replace(r"\*\*", r".+").replace(r"\*", r"([^.]+)"))
