"""bench.perplexity against transformers."""

import math
from pathlib import Path

import pytest
import torch

from bench.perplexity import read
from tests.checkpoints import make_checkpoint
from tests.shard.paged import random_tokens


def test_perplexity_is_that_of_transformers(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    folder = make_checkpoint(tmp_path)
    windows = [random_tokens(40, seed=1), random_tokens(7, seed=2)]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        losses = [float(model(torch.tensor([w]), labels=torch.tensor([w])).loss) for w in windows]
    exact = read(folder, windows, dtype=torch.float32, quantize=None)
    assert len(exact.surprise) == 39 + 6
    expected = math.exp((39 * losses[0] + 6 * losses[1]) / 45)
    assert exact.perplexity == pytest.approx(expected, rel=1e-4)
    quantized = read(folder, windows, dtype=torch.float32, quantize="int8")
    assert quantized.perplexity == pytest.approx(exact.perplexity, rel=0.05)
    assert quantized.perplexity != exact.perplexity
