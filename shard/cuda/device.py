"""What the cutting of work into programs needs to know of a device."""

from functools import cache

import torch


@cache
def num_processors(device: torch.device) -> int:
    """Multiprocessors."""
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def power_of_two(n: int, *, least: int) -> int:
    """The next one, `least` at least."""
    return max(least, 1 << (n - 1).bit_length())
