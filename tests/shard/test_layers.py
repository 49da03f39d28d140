"""Single layers against plain arithmetic, where a whole model would hide a mistake."""

import pytest
import torch
import torch.nn.functional as F
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from shard.layers.matmul import Product, choose_kernel
from shard.layers.norm import RMSNorm
from shard.layers.rotary import inverse_frequencies
from shard.rope_config import RopeConfig

CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_rms_norm_equals_the_librarys(dtype: torch.dtype) -> None:
    norm = RMSNorm(96, eps=1e-5, dtype=dtype)
    norm.fill("weight", torch.randn(96).to(dtype))
    x = torch.randn(7, 96).to(dtype)
    before = x.clone()
    with torch.inference_mode():
        torch.testing.assert_close(norm(x), F.rms_norm(x, (96,), norm.weight, 1e-5))
    assert torch.equal(x, before)


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("num_rows", [1, 4, 33])
def test_the_packed_product_equals_the_plain_one(num_rows: int, with_bias: bool) -> None:
    weight, x = torch.randn(70, 48).bfloat16(), torch.randn(num_rows, 48).bfloat16()
    bias = torch.randn(70).bfloat16() if with_bias else None
    exact = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
    with torch.inference_mode():
        out = Product(weight, bias)(x)
    torch.testing.assert_close(out.double(), exact, rtol=2**-8, atol=2**-6)


def test_only_bfloat16_on_cpu_is_packed() -> None:
    assert {choose_kernel(dtype, CPU) for dtype in (torch.float64, torch.float32, torch.float16)} == {"torch"}
    assert choose_kernel(torch.bfloat16, torch.device("cuda")) == "torch"


@pytest.mark.parametrize(
    "parameters",
    [
        {"rope_type": "linear", "factor": 3.0},
        {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
        {"rope_type": "yarn", "factor": 16.0},
        {"rope_type": "yarn", "factor": 16.0, "beta_fast": 8.0, "beta_slow": 2.0, "truncate": False},
        {"rope_type": "yarn", "factor": 16.0, "mscale": 1.0, "mscale_all_dim": 0.7},
    ],
)
def test_frequencies_equal_the_reference_on_a_real_head_size(parameters: dict[str, object]) -> None:
    entry = {"rope_theta": 500000.0, "original_max_position_embeddings": 4096, **parameters}
    config = LlamaConfig(head_dim=128, max_position_embeddings=65536, rope_parameters=dict(entry))
    expected, scale = ROPE_INIT_FUNCTIONS[str(parameters["rope_type"])](config, CPU)
    ours = RopeConfig.from_dict({"rope_parameters": entry}, 65536)
    torch.testing.assert_close(inverse_frequencies(ours, 128), expected, rtol=1e-6, atol=0)
    assert ours.attention_factor == pytest.approx(scale)
