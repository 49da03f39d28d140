"""What the device can do at all: figures of kernels are read against these."""

import torch

from bench.gpu.timing import seconds

_COPIED_BYTES = 1 << 32
_SIZE = 8192


def copy_bandwidth(device: torch.device) -> float:
    """Bytes read and written per second by a copy within the device's memory."""
    source = torch.zeros(_COPIED_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * _COPIED_BYTES / seconds(lambda: target.copy_(source))


def product_speed(device: torch.device) -> float:
    """Operations per second of a large matrix product in bfloat16, a multiply-add counted as two."""
    # Random, because a product of zeros takes less power and runs faster.
    left, right = torch.randn(2, _SIZE, _SIZE, dtype=torch.bfloat16, device=device).unbind()
    return 2 * _SIZE**3 / seconds(lambda: left @ right)
