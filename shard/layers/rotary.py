"""Owns rotary position embedding (arXiv 2104.09864, halves not interleaved) and the frequencies of its variants.

Frequencies are rounded to float32 as all implementations do: trained models have seen those. The angles are float32,
or float64 in float64.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from shard.cpu.kernels import kernels_for
from shard.cuda.kernels import rows_for
from shard.rope_config import RopeConfig


@dataclass(frozen=True, slots=True)
class Rotation:
    """Cosine and signed sine of a step's rows, [N, 1, head_dim]: (c, c) and (-s, s)."""

    cos: Tensor
    sin: Tensor

    def apply_(self, x: Tensor) -> None:
        """Rotate heads x [N, heads, head_dim] in place; x may be a view with gaps between its rows."""
        if kernels := kernels_for(x.dtype, x.device):
            kernels.rotate(x, self.cos, self.sin)
            return
        if rows := rows_for(x.dtype, x.device):
            rows.rotate(x, self.cos, self.sin)
            return
        swapped = x.roll(x.shape[-1] // 2, -1)
        x.mul_(self.cos).addcmul_(swapped, self.sin)


class Rotary:
    """Positions -> rotations, computed once per step and shared by all layers."""

    def __init__(self, config: RopeConfig, head_dim: int, *, dtype: torch.dtype, device: torch.device) -> None:
        self.dtype = dtype
        self.scale = config.attention_factor
        angle_dtype = torch.float64 if dtype == torch.float64 else torch.float32
        self.frequencies = inverse_frequencies(config, head_dim).to(device=device, dtype=angle_dtype)

    def rotation(self, positions: Tensor) -> Rotation:
        """For positions [N], int64."""
        if rows := rows_for(self.dtype, positions.device):
            return Rotation(*rows.rotation(positions, self.frequencies, self.scale, self.dtype))
        angles = positions[:, None, None] * self.frequencies
        cos, sin = angles.cos() * self.scale, angles.sin() * self.scale
        return Rotation(
            cos=torch.cat((cos, cos), dim=-1).to(self.dtype), sin=torch.cat((-sin, sin), dim=-1).to(self.dtype)
        )


def inverse_frequencies(config: RopeConfig, head_dim: int) -> Tensor:
    """Radians per position of each pair, [head_dim / 2], float32."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32, device="cpu") / head_dim
    plain = 1.0 / config.theta**exponents
    if config.rope_type == "linear":
        return plain / config.factor
    if config.rope_type == "llama3":
        return _llama3(config, plain)
    if config.rope_type == "yarn":
        return _yarn(config, plain, head_dim)
    return plain


def _llama3(config: RopeConfig, plain: Tensor) -> Tensor:
    """Llama 3.1: long waves are stretched by the factor, short ones kept, those between are blended linearly."""
    turns = config.original_max_position_embeddings * plain / (2 * math.pi)
    kept = (turns - config.low_freq_factor) / (config.high_freq_factor - config.low_freq_factor)
    kept = kept.clamp(0, 1)
    return (1 - kept) * plain / config.factor + kept * plain


def _yarn(config: RopeConfig, plain: Tensor, head_dim: int) -> Tensor:
    """YaRN (arXiv 2309.00071, 3.2): stretch the pairs that turn less than beta_slow times, blend up to beta_fast."""

    def pair_that_turns(times: float) -> float:
        waves = config.original_max_position_embeddings / (times * 2 * math.pi)
        return head_dim * math.log(waves) / (2 * math.log(config.theta))

    first, last = pair_that_turns(config.beta_fast), pair_that_turns(config.beta_slow)
    if config.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, head_dim - 1)
    width = (last - first) or 0.001
    stretched = ((torch.arange(head_dim // 2, dtype=torch.float32, device="cpu") - first) / width).clamp(0, 1)
    return stretched * plain / config.factor + (1 - stretched) * plain
