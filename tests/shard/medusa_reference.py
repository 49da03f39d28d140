"""Medusa heads as their description has them, in float64 and in plain loops, and loading ours for a tiny base."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from shard.distributed import TPGroup
from shard.medusa import MedusaHeads, load_heads
from shard.model_config import ModelConfig
from shard.models import load_model
from shard.speculation import Candidates
from tests.medusa_checkpoints import HeadWeights

HIDDEN, VOCABULARY = 72, 131
CPU = torch.device("cpu")


def load(
    heads: Path,
    base: Path,
    *,
    num_heads: int | None = None,
    group: TPGroup | None = None,
    dtype: torch.dtype = torch.float64,
) -> MedusaHeads | None:
    """As a shard does at its start."""
    group = group or TPGroup()
    model = load_model(ModelConfig.from_folder(base), base, group=group, dtype=dtype, device=CPU)
    return load_heads(
        model, path=heads, base_path=base, group=group, dtype=dtype, device=CPU, num_heads=num_heads, progress=None
    )


def hidden_states(num_rows: int = 5) -> Tensor:
    return torch.randn(num_rows, HIDDEN, generator=torch.Generator().manual_seed(7), dtype=torch.float64)


def lm_head_of(base: Path) -> Tensor:
    return load_file(base / "model.safetensors")["lm_head.weight"].double()


def reference(
    heads: list[HeadWeights],
    hidden: Tensor,
    width: int,
    *,
    lm_head: Tensor | None = None,
    token_ids: list[int] | None = None,
) -> Candidates:
    """`lm_head` [V, h] is the base's, for heads without a projection; `token_ids` are what its rows, or the heads' own,
    stand for."""
    all_ids, all_probabilities = [], []
    for row in hidden:
        for head in heads:
            x = row
            for weight, bias in head.blocks:
                z = weight.double() @ x + bias.double()
                x = x + z / (1 + (-z).exp())
            projection = lm_head if head.projection is None else head.projection.double()
            assert projection is not None
            logits = projection @ x
            probabilities = logits.exp() / logits.exp().sum()
            best = sorted(range(len(logits)), key=lambda i: (-float(logits[i]), i))[:width]
            all_ids.append([token_ids[i] if token_ids else i for i in best])
            all_probabilities.append(probabilities[best])
    shape = (len(hidden), len(heads), width)
    return Candidates(torch.tensor(all_ids).view(shape), torch.stack(all_probabilities).view(shape).float())


def assert_same(found: Candidates, expected: Candidates) -> None:
    assert found.token_ids.dtype == torch.int64
    assert found.probabilities.dtype == torch.float32
    assert torch.equal(found.token_ids, expected.token_ids)
    torch.testing.assert_close(found.probabilities, expected.probabilities, rtol=1e-5, atol=1e-7)
