"""The layers of a decoder as one call of decoder.c. Owns telling it where weights, cache and buffers lie; must not know
what a model's modules or a checkpoint's tensors are called.
"""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from shard.attention_spec import AttentionSpec
from shard.cpu.kernels import GATES, CpuKernels, window_of
from shard.cpu.spans import SpansStruct
from shard.distributed import TPGroup
from shard.forward_batch import ForwardBatch
from shard.gate import Gate
from shard.kv_cache import KVCache

_long, _float, _pointer = ctypes.c_long, ctypes.c_float, ctypes.c_void_p


class _Layer(ctypes.Structure):
    _fields_ = [
        *((f"{name}_norm", _pointer) for name in ("input", "q", "k", "attention_out", "mlp", "mlp_out")),
        *((name, _pointer) for name in ("qkv", "o", "gate_up", "down")),
        *((f"{name}_scales", _pointer) for name in ("qkv", "o", "gate_up", "down")),
        *((f"{name}_bias", _pointer) for name in ("qkv", "o", "gate_up", "down")),
        *((name, _pointer) for name in ("pages", "step_rows")),
        *((name, _long) for name in ("rotation", "window")),
    ]


class _Rotation(ctypes.Structure):
    _fields_ = [("frequencies", _pointer), ("scale", ctypes.c_double)]


class _Decoder(ctypes.Structure):
    _fields_ = [
        ("layers", ctypes.POINTER(_Layer)),
        ("rotations", ctypes.POINTER(_Rotation)),
        ("final_norm", _pointer),
        *(
            (name, _long)
            for name in (
                "num_layers",
                "num_rotations",
                "hidden",
                "heads",
                "kv_heads",
                "dim",
                "width",
                "block_size",
                "value_offset",
                "gate",
            )
        ),
        *((name, _float) for name in ("eps", "scale", "softcap")),
    ]


class _Step(ctypes.Structure):
    _fields_ = [
        *((name, _long) for name in ("n", "num_step_rows")),
        *((name, _pointer) for name in ("physical_slots", "cos", "sin")),
        ("spans", SpansStruct),
    ]


class _Buffers(ctypes.Structure):
    _fields_ = [*((name, _pointer) for name in ("x", "y", "wide", "normed", "out", "groups")), ("y_stride", _long)]


@dataclass(frozen=True, slots=True)
class LayerParts:
    """A layer's tensors on this rank: factors of norms, packed weights, scales of those in int8, biases. None: the
    layer does without.

    Biases behind a sum over the ranks (o, down) are added once, after it.
    """

    input_norm: Tensor
    qkv: Tensor
    o: Tensor
    mlp_norm: Tensor
    gate_up: Tensor
    down: Tensor
    spec: AttentionSpec
    rotation: int
    q_norm: Tensor | None = None
    k_norm: Tensor | None = None
    attention_out_norm: Tensor | None = None
    mlp_out_norm: Tensor | None = None
    qkv_scales: Tensor | None = None
    o_scales: Tensor | None = None
    gate_up_scales: Tensor | None = None
    down_scales: Tensor | None = None
    qkv_bias: Tensor | None = None
    o_bias: Tensor | None = None
    gate_up_bias: Tensor | None = None
    down_bias: Tensor | None = None


@dataclass(frozen=True, slots=True)
class DecoderSizes:
    """Heads and the MLP's width are this rank's."""

    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    width: int
    gate: Gate
    eps: float


class CompiledLayers:
    """All layers and the norm behind them: embeddings [N, hidden] -> hidden states [N, hidden]."""

    def __init__(
        self,
        kernels: CpuKernels,
        layers: list[LayerParts],
        rotations: list[tuple[Tensor, float]],
        final_norm: Tensor,
        sizes: DecoderSizes,
        group: TPGroup,
    ) -> None:
        """`rotations`: radians per position of each pair [head_dim / 2], and the factor of their cosine and sine."""
        self._kernels, self._sizes, self._group = kernels, sizes, group
        # Of weights in int8, the only ones for which inputs may become integers.
        is_int8 = layers[0].qkv_scales is not None
        self._widest_input = max(sizes.hidden, sizes.heads * sizes.head_dim, sizes.width) if is_int8 else 0
        self._cache: KVCache | None = None
        # Kept alive with the addresses that point into them.
        self._held: list[Tensor] = []
        self._layers = (_Layer * len(layers))(*map(self._layer, layers))
        self._rotations = (_Rotation * len(rotations))(
            *(_Rotation(self._address(frequencies, torch.float32), scale) for frequencies, scale in rotations)
        )
        spec = layers[0].spec
        self._decoder = _Decoder(
            layers=self._layers,
            rotations=self._rotations,
            final_norm=self._address(final_norm.float()),
            num_layers=len(layers),
            num_rotations=len(rotations),
            hidden=sizes.hidden,
            heads=sizes.heads,
            kv_heads=sizes.kv_heads,
            dim=sizes.head_dim,
            width=sizes.width,
            gate=GATES.index(sizes.gate),
            eps=sizes.eps,
            scale=spec.scale,
            softcap=spec.softcap or 0.0,
        )

    def takes(self, num_rows: int) -> bool:
        """Whether so many rows are its own, and not the library's, layer by layer."""
        return not self._kernels.leaves_to_tiles(num_rows)

    def __call__(
        self, embedded: Tensor, batch: ForwardBatch, cache: KVCache, on_launch: Callable[[], None] = lambda: None
    ) -> Tensor:
        """Stores keys and values."""
        assert batch.paged is not None
        if self._cache is not cache:
            self._enter(cache)
        num_rows, hidden = embedded.shape
        x, normed = embedded.float(), torch.empty(num_rows, hidden)
        # Products write whole panels, the last row's too.
        y = torch.empty(num_rows, self._kernels.packing.num_outputs(hidden))
        out = torch.empty_like(embedded)
        wide = torch.empty(self._wide_size(num_rows))
        cos, sin = torch.empty(2, len(self._rotations), num_rows, self._sizes.head_dim)
        step = _Step(
            num_rows,
            batch.num_step_rows,
            batch.physical_slots.data_ptr(),
            cos.data_ptr(),
            sin.data_ptr(),
            batch.paged.struct,
        )
        groups = self._kernels.room_for_integers(num_rows, self._widest_input)
        buffers = _Buffers(
            x.data_ptr(),
            y.data_ptr(),
            wide.data_ptr(),
            normed.data_ptr(),
            out.data_ptr(),
            groups.data_ptr(),
            y.shape[1],
        )
        on_launch()
        end = 2 * len(self._layers)
        if self._group.size == 1:
            self._run(step, buffers, 0, end + 1)
        else:
            for half in range(end):
                self._run(step, buffers, half, half + 1)
                self._group.all_reduce(y)
            self._run(step, buffers, end, end + 1)
        return out

    def _run(self, step: _Step, buffers: _Buffers, first: int, last: int) -> None:
        self._kernels.run_halves(ctypes.byref(self._decoder), ctypes.byref(step), ctypes.byref(buffers), first, last)

    def _wide_size(self, num_rows: int) -> int:
        sizes = self._sizes
        attended = sizes.heads * sizes.head_dim
        padded = self._kernels.packing.num_outputs
        qkv = padded(attended + 2 * sizes.kv_heads * sizes.head_dim)
        return num_rows * max(qkv + attended, padded(sizes.width))

    def _enter(self, cache: KVCache) -> None:
        """The addresses of another cache."""
        self._cache = cache
        self._decoder.block_size = cache.block_size
        self._decoder.value_offset = cache.pages(0).numel() // 2
        for index, layer in enumerate(self._layers):
            layer.pages = cache.pages(index).data_ptr()
            layer.step_rows = cache.step_rows(index).data_ptr()

    def _layer(self, parts: LayerParts) -> _Layer:
        layer = _Layer(rotation=parts.rotation, window=window_of(parts.spec))
        for name in ("input_norm", "q_norm", "k_norm", "attention_out_norm", "mlp_norm", "mlp_out_norm"):
            setattr(layer, name, self._address(getattr(parts, name), torch.float32))
        for name in ("qkv", "o", "gate_up", "down"):
            setattr(layer, name, self._address(getattr(parts, name)))
            setattr(layer, f"{name}_scales", self._address(getattr(parts, f"{name}_scales")))
            bias = getattr(parts, f"{name}_bias")
            setattr(
                layer, f"{name}_bias", None if bias is None else self._address(self._kernels.packing.pack_outputs(bias))
            )
        return layer

    def _address(self, tensor: Tensor | None, dtype: torch.dtype | None = None) -> int | None:
        if tensor is None:
            return None
        self._held.append(tensor.to(dtype or tensor.dtype).contiguous())
        return self._held[-1].data_ptr()
