"""How many KV blocks there are: what the user said, or what memory is left for."""

import os

import torch

from shard.config import ConfigError, ShardConfig

# Without a flag a rank on CPU takes at most this, and at most a fraction of the memory that is there.
_CPU_DEFAULT_BYTES = 1 << 30
_CPU_FRACTION = 0.25


def num_kv_blocks(config: ShardConfig, *, bytes_per_block: int, device: torch.device, ranks_on_host: int) -> int:
    """Blocks of this rank. ConfigError if they could not hold one sequence of the greatest length."""
    if config.max_batch_total_tokens:
        return -(-config.max_batch_total_tokens // config.block_size)
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        # What the fraction leaves out is for activations.
        available = free - int((1 - config.memory_fraction) * total)
    else:
        physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        available = min(_CPU_DEFAULT_BYTES, int(_CPU_FRACTION * physical) // ranks_on_host)
    per_sequence = -(-config.max_total_tokens // config.block_size)
    num_blocks = min(available // bytes_per_block, per_sequence * config.max_batch_size)
    if num_blocks < per_sequence:
        raise ConfigError(
            f"too few KV blocks: memory is left for {max(num_blocks, 0) * config.block_size} tokens, less than one "
            f"request may have (--max-total-tokens {config.max_total_tokens}); lower it, add shards, or give "
            "--max-batch-total-tokens"
        )
    return num_blocks
