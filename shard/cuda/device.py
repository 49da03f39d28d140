"""What the cutting of work into programs needs to know of a device."""

from functools import cache

import torch

# Threads of one.
WARP = 32


@cache
def num_processors(device: torch.device) -> int:
    """Multiprocessors."""
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


@cache
def is_roomy(device: torch.device) -> bool:
    """Whether a program may take 160 KB of shared memory, and not just the 99 that the smallest devices have."""
    if device.type != "cuda":
        return False
    # Not in the stubs of every torch.
    return bool(getattr(torch.cuda.get_device_properties(device), "shared_memory_per_block_optin", 0) >= 160 << 10)


@cache
def early(device: torch.device) -> dict[str, bool]:
    """Arguments by which a kernel begins before those ahead of it have ended, where it can (see `shard.cuda.early`)."""
    is_early = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)
    return {"IS_EARLY": is_early, "launch_pdl": is_early}


def power_of_two(n: int, *, least: int) -> int:
    """The next one, `least` at least."""
    return max(least, 1 << (n - 1).bit_length())
