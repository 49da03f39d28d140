"""Weights in 8 bits: their numbers, and whole models of them against transformers with the same numbers."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from shard.config import ConfigError
from shard.cpu.kernels import NAME
from shard.distributed import TPGroup
from shard.layers.matmul import Product
from shard.layers.quantize import Quantization, QuantizedWeight, quantized
from shard.rank import build_rank
from tests.checkpoints import make_checkpoint
from tests.shard.configs import shard_config
from tests.shard.paged import PagedModel, Part, Sequence, random_tokens

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"attention_bias": True, "mlp_bias": True}),
    # Inputs of the MLP's second matrix are no multiple of what is multiplied together, and more than share a scale.
    "llama of odd width": ("llama", {"intermediate_size": 150}),
    "qwen3 tied": ("qwen3", {"tie_word_embeddings": True}),
    "gemma2": ("gemma2", {"sliding_window": 10}),
}


class Halves(TPGroup):
    """A rank of two that knows what the other one says."""

    def __init__(self, other: Tensor) -> None:
        super().__init__()
        self.size = 2
        self._other = other

    def all_gather(self, x: Tensor) -> Tensor:
        return torch.stack((x, self._other))


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@given(st.integers(1, 2000), st.integers(1, 40), st.sampled_from([torch.float64, torch.float32, torch.bfloat16]))
def test_the_nearest_of_255_numbers_is_taken(num_outputs: int, num_inputs: int, dtype: torch.dtype) -> None:
    weight = draw(num_outputs, num_inputs, seed=num_inputs).to(dtype)
    values, scales = quantized(weight, "int8")
    assert values.dtype == torch.int8
    assert int(values.min()) >= -127
    assert (values.abs().amax(1) == 127).all()
    assert ((values * scales[:, None] - weight).abs() <= 0.5001 * scales[:, None]).all()


@given(st.integers(1, 2000), st.integers(1, 40), st.sampled_from([torch.float64, torch.float32, torch.bfloat16]))
def test_the_nearest_number_of_three_bits_and_an_exponent_is_taken(
    num_outputs: int, num_inputs: int, dtype: torch.dtype
) -> None:
    weight = draw(num_outputs, num_inputs, seed=num_inputs).to(dtype)
    values, scales = quantized(weight, "fp8")
    assert values.dtype == torch.float8_e4m3fn
    assert (values.float().abs().amax(1) == 448).all()
    # Half of the last place of a number, or of the least exponent.
    error = (values.float() * scales[:, None] - weight.float()).abs()
    assert (error <= torch.maximum(weight.float().abs() / 15.9, scales[:, None] * 2**-9)).all()


@pytest.mark.parametrize("quantization", ["int8", "fp8"])
def test_an_output_of_zeros_stays_zero(quantization: Quantization) -> None:
    values, scales = quantized(torch.zeros(3, 5), quantization)
    assert not values.float().any()
    assert scales.isfinite().all()
    assert (scales > 0).all()


@pytest.mark.parametrize("quantization", ["int8", "fp8"])
def test_ranks_that_share_an_output_agree_on_its_scale(quantization: Quantization) -> None:
    weight = draw(7, 10, seed=0)
    whole, (left, right) = quantized(weight, quantization), weight.split(5, dim=1)
    for mine, other, columns in ((left, right, slice(0, 5)), (right, left, slice(5, 10))):
        part = quantized(mine, quantization, Halves(other.abs().amax(1)))
        assert torch.equal(part.values.float(), whole.values[:, columns].float())
        assert torch.equal(part.scales, whole.scales)


@pytest.mark.parametrize("quantization", ["int8", "fp8"])
def test_float16_holds_what_is_widened_and_its_scales(quantization: Quantization) -> None:
    weight = draw(24, 256, seed=0) / 50
    weight[5] /= 10_000
    x = draw(9, 256, seed=1)
    # What trained models are known for.
    x[:, 7] += 1000
    x = x.half()
    values, scales = quantized(weight, quantization)
    exact = x.double() @ (values.double() * scales[:, None]).T
    assert (exact / scales).abs().max() > torch.finfo(torch.float16).max > exact.abs().max()
    out = Product(QuantizedWeight(values, scales), None, torch.float16)(x)
    torch.testing.assert_close(out.double(), exact, rtol=2**-8, atol=2**-12)


@pytest.fixture(params=MODELS.values(), ids=MODELS.keys())
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    family, overrides = request.param
    return make_checkpoint(tmp_path, family, **overrides)


def reference_logits(
    folder: Path, prompt: list[int], dtype: torch.dtype = torch.float64, quantization: Quantization = "int8"
) -> Tensor:
    """Of transformers in float64 with the numbers of our matrices in `dtype`; of a tied LM head they are its own."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    for module in list(model.modules()):
        if isinstance(module, nn.Linear):
            values, scales = quantized(module.weight.detach().to(dtype), quantization)
            module.weight = nn.Parameter(values.double() * scales[:, None])
    with torch.no_grad():
        out: Tensor = model(torch.tensor([prompt])).logits[0]
    return out


@pytest.mark.parametrize("quantization", ["int8", "fp8"])
def test_logits_equal_those_of_the_rounded_matrices(folder: Path, quantization: Quantization) -> None:
    prompt = random_tokens(40)
    reference = reference_logits(folder, prompt, quantization=quantization)
    plain = PagedModel(folder, dtype=torch.float64)
    logits = PagedModel(folder, dtype=torch.float64, quantize=quantization).prefill(Sequence(), prompt)
    scale = float(reference.abs().max())
    torch.testing.assert_close(logits.double(), reference, rtol=0, atol=1e-4 * scale)
    # A model that forgot to round would not pass.
    assert float((plain.prefill(Sequence(), prompt) - reference).abs().max()) > 1e-2 * scale


def test_the_compiled_layers_stay_near(folder: Path) -> None:
    prompt = random_tokens(40)
    reference, sequence = reference_logits(folder, prompt, torch.bfloat16), Sequence()
    paged = PagedModel(folder, dtype=torch.bfloat16, quantize="int8")
    assert paged.model.kernels["linear"] == paged.model.kernels["layers"] == NAME
    prefilled = paged.prefill(sequence, prompt[:20])
    decoded = torch.cat([paged.step([Part(sequence, [token])])[0] for token in prompt[20:]])
    rounded = torch.cat((prefilled, decoded))
    assert float((rounded - reference).abs().mean()) < 0.05 * float(reference.abs().mean())


@pytest.mark.parametrize("flag", ["--quantize", "--kv-cache-dtype"])
def test_numbers_that_the_device_lacks_are_refused(flag: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    model = make_checkpoint(tmp_path)
    with pytest.raises(ConfigError, match=f"{flag} fp8 needs a GPU"):
        build_rank(shard_config(model, "--max-total-tokens=64", f"{flag}=fp8"))


def test_what_was_done_to_the_weights_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    model = make_checkpoint(tmp_path)

    def weights(*flags: str) -> str:
        return build_rank(shard_config(model, "--max-total-tokens=64", *flags)).info.weights

    note = "--weights-note=dequantized from Q4_1"
    assert weights(note) == "dequantized from Q4_1"
    assert weights(note, "--quantize=int8") == "dequantized from Q4_1, quantized to int8"
    assert weights() == ""
