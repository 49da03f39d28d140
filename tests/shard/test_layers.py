"""Single layers against plain arithmetic, where a whole model would hide a mistake."""

import pytest
import torch
import torch.nn.functional as F
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from shard.distributed import TPGroup
from shard.layers.matmul import Product, choose_kernel
from shard.layers.norm import OffsetRMSNorm, RMSNorm
from shard.layers.rotary import inverse_frequencies
from shard.layers.sharded import ShardedModule
from shard.model_config import ModelConfig
from shard.models.moe import Expert, SparseMoE
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


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(7, 96), (5, 3, 96)])
def test_the_offset_norm_multiplies_before_it_rounds(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    # small weights: rounded to 16 bits, one and such a weight are nearly one
    weight, x = (torch.randn(96) * 1e-2).to(dtype), torch.randn(shape).to(dtype)
    norm = OffsetRMSNorm(96, eps=1e-5, dtype=dtype)
    norm.fill("weight", weight)
    with torch.inference_mode():
        norm.finish()
        out = norm(x)
    assert out.dtype == dtype
    exact = F.rms_norm(x.double(), (96,), eps=1e-5) * (1 + weight.double())
    unit = torch.finfo(dtype).eps
    torch.testing.assert_close(out.double(), exact, rtol=0.51 * unit if unit > 1e-6 else 10 * unit, atol=0)


def filled_moe(dtype: torch.dtype) -> SparseMoE:
    """4 experts of width 20 over 12 features; 2 are taken."""
    generator = torch.Generator().manual_seed(0)
    sizes = {
        "vocab_size": 8,
        "hidden_size": 12,
        "intermediate_size": 20,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "max_position_embeddings": 8,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
    }
    config = ModelConfig.from_dict({"model_type": "mixtral", **sizes})
    moe = SparseMoE(config, group=TPGroup(), dtype=dtype)
    layers = [layer for layer in moe.modules() if isinstance(layer, ShardedModule)]
    for layer in layers:
        layer.fill("weight", torch.randn(layer.get_parameter("weight").shape, generator=generator).to(dtype))
    for layer in layers:
        layer.finish()
    return moe


def test_only_the_chosen_experts_run_and_each_once_with_its_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    moe = filled_moe(torch.float64)
    x = torch.randn(9, 12, dtype=torch.float64)
    _, chosen = moe.router(x)
    num_rows: list[int] = []
    run = Expert.__call__

    def counted(expert: Expert, rows: torch.Tensor) -> torch.Tensor:
        num_rows.append(rows.shape[0])
        return run(expert, rows)

    monkeypatch.setattr(Expert, "__call__", counted)
    moe(x[:1])
    assert num_rows == [1, 1]
    num_rows.clear()
    moe(x)
    assert num_rows == [count for count in chosen.view(-1).bincount().tolist() if count]


def test_a_rows_experts_do_not_depend_on_the_rows_beside_it() -> None:
    moe = filled_moe(torch.float64)
    x = torch.randn(33, 12, dtype=torch.float64)
    together = moe(x)
    for row in range(33):
        torch.testing.assert_close(moe(x[row : row + 1])[0], together[row], rtol=1e-12, atol=1e-12)
    _, chosen = moe.router(x)
    alone = [moe.router(x[row : row + 1])[1] for row in range(33)]
    assert torch.equal(chosen, torch.cat(alone))


def test_the_router_is_not_rounded_to_16_bits() -> None:
    moe = filled_moe(torch.bfloat16)
    x = torch.randn(5, 12).bfloat16()
    weights, _ = moe.router(x)
    assert weights.dtype == torch.float32
    torch.testing.assert_close(weights.sum(-1), torch.ones(5))
    assert moe(x).dtype == torch.bfloat16


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
