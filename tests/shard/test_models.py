"""The model families against transformers, in float32 on the same weights."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.checkpoints import make_checkpoint
from tests.shard.paged import PagedModel, Sequence, random_tokens

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "rope_theta": 10000.0}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
    "rope_theta": 500000.0,
}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama tied": ("llama", {"tie_word_embeddings": True}),
    "llama biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama one kv head": ("llama", {"kv_heads": 1}),
    "llama as many kv heads": ("llama", {"kv_heads": 9}),
    "llama linear rope": (
        "llama",
        {"rope_parameters": {"rope_type": "linear", "factor": 2.5, "rope_theta": 10000.0}},
    ),
    "llama llama3 rope": ("llama", {"rope_parameters": LLAMA3}),
    "llama yarn rope": ("llama", {"rope_parameters": YARN}),
    "llama yarn rope with its own scale": ("llama", {"rope_parameters": YARN | {"attention_factor": 1.3}}),
    "llama yarn rope untruncated": ("llama", {"rope_parameters": YARN | {"truncate": False, "beta_fast": 8.0}}),
    "qwen3": ("qwen3", {}),
    "qwen3 tied, biased, yarn": (
        "qwen3",
        {"tie_word_embeddings": True, "attention_bias": True, "rope_parameters": YARN, "hidden": 64, "heads": 4,
         "kv_heads": 2, "head_dim": 32},
    ),
}  # fmt: skip


@pytest.fixture(scope="module", params=VARIANTS.values(), ids=VARIANTS.keys())
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    family, overrides = request.param
    return make_checkpoint(tmp_path_factory.mktemp("model"), family, **overrides)


def test_logits_equal_the_reference(folder: Path) -> None:
    prompt = random_tokens(70)
    ours = PagedModel(folder)
    with torch.no_grad():
        reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(torch.tensor([prompt])).logits[0]
    for chunk in (70, 7):
        logits = ours.prefill(Sequence(), prompt, chunk=chunk)
        torch.testing.assert_close(logits, reference, rtol=0, atol=1e-4 * float(reference.abs().max()))


def test_greedy_tokens_of_a_batch_equal_the_reference(folder: Path) -> None:
    prompts = [random_tokens(n, seed=300 + n) for n in (3, 17, 40)]
    reference_model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    expected, margins, distinct = [], [], set()
    for prompt in prompts:
        out = reference_model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=20,
            min_new_tokens=20,
            do_sample=False,
            eos_token_id=None,
            output_logits=True,
            return_dict_in_generate=True,
        )
        expected.append(out.sequences[0, len(prompt) :].tolist())
        distinct |= set(expected[-1])
        top = torch.cat(out.logits).topk(2).values
        margins.append(float((top[:, 0] - top[:, 1]).min()))
    assert min(margins) > 1e-3, "the reference itself is too close to a tie for this test to mean anything"
    assert len(distinct) >= 20
    assert PagedModel(folder).greedy(prompts, 20, chunk=16) == expected


def test_kernels_are_named(folder: Path) -> None:
    assert PagedModel(folder).model.kernels == {"linear": "torch", "attention": "torch-sdpa"}


def test_bfloat16_stays_near_float32(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, tie_word_embeddings=True)
    prompt = random_tokens(40)
    exact = PagedModel(folder).prefill(Sequence(), prompt)
    rounded = PagedModel(folder, dtype=torch.bfloat16).prefill(Sequence(), prompt)
    assert rounded.dtype == torch.float32
    assert float((rounded - exact).abs().mean()) < 0.05 * float(exact.abs().mean())


def test_float64_is_float64_throughout(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path)
    prompt = random_tokens(40)
    whole = PagedModel(folder, dtype=torch.float64).prefill(Sequence(), prompt)
    chunked = PagedModel(folder, dtype=torch.float64).prefill(Sequence(), prompt, chunk=3)
    assert whole.dtype == torch.float64
    # any step through float32 would leave differences of 1e-6
    torch.testing.assert_close(chunked, whole, rtol=0, atol=1e-11)
