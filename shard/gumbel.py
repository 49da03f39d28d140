"""Gumbel noise as a pure function of (seed, position, vocabulary id).

Owns the hash and the uniforms. Must not know of logits, batches or shards: whoever asks for
the noise of one id gets the same bits, whatever else is asked for in the same call.
"""

from typing import Final

import torch
from torch import Tensor

# Uniforms are (i + 1/2) / 2^23 for 0 <= i < 2^23: exact in float32 and never 0 or 1, so the noise is finite.
_UNIFORM_BITS: Final = 23


def _signed(constant: int, bits: int) -> int:
    """The two's complement reading of an unsigned constant, which is what integer tensors take."""
    return constant - (1 << bits) if constant >> (bits - 1) else constant


_GOLDEN_64: Final = _signed(0x9E3779B97F4A7C15, 64)
_STAFFORD_A: Final = _signed(0xBF58476D1CE4E5B9, 64)
_STAFFORD_B: Final = _signed(0x94D049BB133111EB, 64)
_LOWBIAS_A: Final = _signed(0x7FEB352D, 32)
_LOWBIAS_B: Final = _signed(0x846CA68B, 32)


def _xor_shift(x: Tensor, shift: int, scratch: Tensor) -> Tensor:
    """In place x ^= x >>> shift. Tensors shift arithmetically, so the copies of the sign bit are masked away."""
    bits = x.element_size() * 8
    torch.bitwise_right_shift(x, shift, out=scratch)
    return x.bitwise_xor_(scratch.bitwise_and_((1 << (bits - shift)) - 1))


def _mix64(x: Tensor) -> Tensor:
    """SplitMix64's finalizer (Stafford's variant 13), in place: a bijection of int64 in which each bit reaches all."""
    scratch = torch.empty_like(x)
    _xor_shift(x, 30, scratch).mul_(_STAFFORD_A)
    _xor_shift(x, 27, scratch).mul_(_STAFFORD_B)
    return _xor_shift(x, 31, scratch)


def row_key(seed: Tensor, position: Tensor) -> Tensor:
    """The 64-bit key (int64) of the noise of each row, from a 64-bit seed and the index of the token to be chosen."""
    return _mix64(_mix64(seed + _GOLDEN_64) + position)


def uniform(key: Tensor, token_ids: Tensor, dtype: torch.dtype) -> Tensor:
    """Uniforms strictly inside (0, 1) with 23 bits, for int64 tensors that broadcast against each other.

    Two rounds of Wellons' lowbias32, one under either half of the key: two rows share their noise only where all 64
    bits agree. The first round leaves out its last step, which the second does not need. Products wrap around.
    """
    low, high = key.to(torch.int32), (key >> 32).to(torch.int32)
    x = token_ids.to(torch.int32) ^ low
    scratch = torch.empty_like(x)
    _xor_shift(x, 16, scratch).mul_(_LOWBIAS_A)
    _xor_shift(x, 15, scratch).mul_(_LOWBIAS_B)
    x.add_(high)
    _xor_shift(x, 16, scratch).mul_(_LOWBIAS_A)
    _xor_shift(x, 15, scratch).mul_(_LOWBIAS_B)
    _xor_shift(x, 16, scratch)
    # The top bits as a signed integer in [-2^22, 2^22), moved to (0, 2^23) exactly.
    top_bits = x.bitwise_right_shift_(32 - _UNIFORM_BITS).to(dtype)
    return top_bits.add_(0.5 * (1 << _UNIFORM_BITS) + 0.5).mul_(2.0**-_UNIFORM_BITS)


def keyed_gumbel(key: Tensor, token_ids: Tensor, dtype: torch.dtype) -> Tensor:
    """As `gumbel`, from the row keys."""
    return uniform(key, token_ids, dtype).log_().neg_().log_().neg_()


def gumbel(seed: Tensor, position: Tensor, token_ids: Tensor, dtype: torch.dtype) -> Tensor:
    """Noise with the Gumbel law -log(-log(u)), within (-2.82, 16.64), in float32 or float64.

    `seed` holds 64 bits in int64, `position` is the index of the token to be chosen; both and `token_ids` are int64
    and broadcast. The argmax of logits plus this noise is a draw from their softmax (Gumbel 1954).
    """
    return keyed_gumbel(row_key(seed, position), token_ids, dtype)
