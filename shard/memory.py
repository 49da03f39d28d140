"""How many KV blocks there are: what the user said, or what is left when the largest step and captured steps have
their memory."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from shard.config import ConfigError, ShardConfig

# Without a flag a rank on CPU takes at most this, or what one sequence needs, and at most a fraction of the memory
# that is there.
_CPU_DEFAULT_BYTES = 1 << 30
_CPU_FRACTION = 0.25
# Of a container; version 2, and 1. Where there is none the file is missing, says "max", or a number beyond any memory.
_CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
# Of what a GPU has beside weights and the largest step so much is for other captured steps: on 80 GB with 8B
# parameters 2.7 GB, and 170 graphs of 32 layers took 1.5 GB at most.
_GRAPHS_FRACTION = 0.05


@dataclass(frozen=True, slots=True)
class StepBytes:
    """Of a GPU's memory: `peak`, what the largest steps take while they run, and `captured`, what they keep when they
    are captured; 0 where no steps are."""

    peak: int = 0
    captured: int = 0


def peak_bytes(device: torch.device, run: Callable[[], object]) -> int:
    """What `run` takes of a GPU's memory at its most, beyond what is taken before. ConfigError if there is less."""
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    with _must_fit():
        run()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def kept_bytes(device: torch.device, make: Callable[[], object]) -> int:
    """What the object that `make` returns holds of a GPU's memory, the allocator's or not. ConfigError if there is
    less."""
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    before, _ = torch.cuda.mem_get_info(device)
    with _must_fit():
        held = make()
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    after, _ = torch.cuda.mem_get_info(device)
    del held
    return before - after


@contextmanager
def _must_fit() -> Iterator[None]:
    try:
        yield
    except (torch.OutOfMemoryError, torch.AcceleratorError) as error:
        # The latter where the driver has no memory for a graph, or where a capture could not end after the former.
        reasons = error, error.__context__
        if not any(isinstance(r, torch.OutOfMemoryError) or "out of memory" in str(r).lower() for r in reasons):
            raise
        raise ConfigError(
            "the largest step does not fit the GPU beside the weights; lower --max-batch-prefill-tokens, "
            "--max-batch-size or --max-batch-draft-tokens, or add shards"
        ) from error


def least_free_bytes(config: ShardConfig, *, device: torch.device, largest: StepBytes) -> int:
    """What must be free of a GPU between steps: the part that is not ours, and room for the largest step."""
    _, total = torch.cuda.mem_get_info(device)
    return int((1 - config.memory_fraction) * total) + largest.peak


def available_bytes(config: ShardConfig, *, device: torch.device, ranks_on_host: int, largest: StepBytes) -> int:
    """What the KV cache of this rank may take beside the largest steps and others that are captured."""
    if device.type == "cuda":
        # What the allocator holds and nobody uses is free.
        torch.cuda.empty_cache()
        free, _ = torch.cuda.mem_get_info(device)
        left = free - least_free_bytes(config, device=device, largest=largest) - largest.captured
        return left - int(_GRAPHS_FRACTION * max(left, 0)) if largest.captured else left
    return int(_CPU_FRACTION * _host_bytes()) // ranks_on_host


def _host_bytes() -> int:
    """Memory of this machine, or as much of it as its container may use."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for path in _CGROUP_LIMITS:
        with suppress(OSError, ValueError):
            physical = min(physical, int(path.read_text()))
    return physical


def num_kv_blocks(config: ShardConfig, *, bytes_per_block: int, available: int, device: torch.device) -> int:
    """Blocks of this rank. ConfigError if they could not hold one sequence of the greatest length, or on a GPU have no
    room."""
    per_sequence = -(-config.max_total_tokens // config.block_size)
    if device.type == "cpu":
        available = min(available, max(_CPU_DEFAULT_BYTES, per_sequence * bytes_per_block))
    room = max(available, 0) // bytes_per_block
    if config.max_batch_total_tokens:
        wanted = -(-config.max_batch_total_tokens // config.block_size)
        # On CPU the system finds memory for what is only reserved, and `available` is a guess.
        if device.type == "cuda" and wanted > room:
            raise ConfigError(
                f"--max-batch-total-tokens {config.max_batch_total_tokens} is more than the GPU has memory for, "
                f"{room * config.block_size} tokens beside the weights and the largest step; lower it, "
                "--max-batch-prefill-tokens or --max-batch-size, or add shards"
            )
        return wanted
    num_blocks = min(room, per_sequence * config.max_batch_size)
    if num_blocks < per_sequence:
        raise ConfigError(
            f"too few KV blocks: memory is left for {num_blocks * config.block_size} tokens, less than one "
            f"request may have (--max-total-tokens {config.max_total_tokens}); lower it, add shards, or give "
            "--max-batch-total-tokens"
        )
    return num_blocks
