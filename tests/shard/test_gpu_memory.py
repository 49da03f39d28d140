"""What was counted before the first request is enough: pool, batch and trees at their limits at once."""

from pathlib import Path

import pytest
import torch

from shard.largest_steps import run_largest
from shard.made_up import MadeUpSteps
from shard.rank import build_rank
from shard.speculation_setup import proposals_of, speculation_methods, speculation_sizes
from tests.checkpoints import make_checkpoint
from tests.medusa_checkpoints import random_heads, write_heads
from tests.shard.configs import shard_config
from tests.shard.triton_device import needs_gpu

# Of the GPU's memory: what is left of it is taken by the KV cache to the last block.
_BYTES = 3 << 30
_VOCAB = 32000


@pytest.mark.gpu
@pytest.mark.alone
@needs_gpu
def test_the_largest_steps_fit_beside_the_kv_cache(tmp_path: Path) -> None:
    model = make_checkpoint(
        tmp_path / "model", num_layers=24, hidden=256, heads=8, kv_heads=8, head_dim=32, vocab=_VOCAB
    )
    heads = write_heads(tmp_path / "heads", random_heads(3, 1, 256, _VOCAB, tied=False), "v1", base=str(model))
    free, total = torch.cuda.mem_get_info()
    fraction = 1 - (free - _BYTES) / total
    config = shard_config(
        model,
        *(f"--medusa-path={heads}", "--max-total-tokens=2048", "--max-batch-size=64", "--max-batch-draft-tokens=128"),
        *("--max-batch-prefill-tokens=4096", f"--memory-fraction={fraction}"),
    )
    rank = build_rank(config)
    # All that there is was given away.
    assert rank.info.num_blocks < 64 * 2048 // 16
    limit = torch.cuda.memory_reserved() + torch.cuda.mem_get_info()[0] - (free - _BYTES)
    torch.cuda.set_per_process_memory_fraction(limit / total)
    try:
        rank.warm_up()
        sizes = speculation_sizes(config, num_heads=3, device=rank.runner.states.device)
        methods = speculation_methods(config, sizes)
        steps = MadeUpSteps(rank.runner, config, sizes=sizes)
        run_largest(steps, config, sizes, proposals_of(methods), times=3)
        torch.cuda.synchronize()
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    taken = free - torch.cuda.mem_get_info()[0]
    print(f"{taken * 1e-9:.2f} GB of {_BYTES * 1e-9:.2f} GB")
    assert taken <= _BYTES
