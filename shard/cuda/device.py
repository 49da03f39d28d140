"""What the cutting of work into programs needs to know of a device."""

from functools import cache

import torch


@cache
def num_processors(device: torch.device) -> int:
    """Multiprocessors."""
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


@cache
def is_roomy(device: torch.device) -> bool:
    """Whether a program may take 160 KB of shared memory, and not just the 99 that the smallest devices have."""
    if device.type != "cuda":
        return False
    # mypy's stubs do not know it.
    return bool(getattr(torch.cuda.get_device_properties(device), "shared_memory_per_block_optin", 0) >= 160 << 10)


@cache
def launches_early(device: torch.device) -> bool:
    """Whether kernels may begin before those that they wait for have ended (see `shard.cuda.early`)."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)


def power_of_two(n: int, *, least: int) -> int:
    """The next one, `least` at least."""
    return max(least, 1 << (n - 1).bit_length())
