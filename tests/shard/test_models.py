"""The model families against transformers, in float32 on the same weights."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tests.checkpoints import make_checkpoint
from tests.shard.paged import PagedModel, Part, Sequence, random_tokens

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "rope_theta": 10000.0}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
    "rope_theta": 500000.0,
}
# small caps, so that they bend what these models compute
GEMMA_2_SCALES = {"attn_logit_softcapping": 3.0, "final_logit_softcapping": 6.0, "query_pre_attn_scalar": 40}
GEMMA_3_LAYERS = {
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    "num_layers": 3,
    "sliding_window": 10,
    "query_pre_attn_scalar": 24,
}
GEMMA_3_ROPES = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
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
    "qwen3 with a window": ("qwen3", {"use_sliding_window": True, "sliding_window": 11, "max_window_layers": 1}),
    "mistral": ("mistral", {"sliding_window": 13}),
    "mistral without a window": ("mistral", {"sliding_window": None}),
    "mixtral": ("mixtral", {"num_local_experts": 5, "num_experts_per_tok": 2}),
    "mixtral with a window": ("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 3, "sliding_window": 9}),
    "qwen2": ("qwen2", {"head_dim": 8}),
    "qwen2 tied, with windows": (
        "qwen2",
        {"head_dim": 8, "tie_word_embeddings": True, "use_sliding_window": True, "sliding_window": 12,
         "max_window_layers": 1, "num_layers": 3},
    ),
    "gemma": ("gemma", {"tie_word_embeddings": True}),
    "gemma untied, biased": ("gemma", {"attention_bias": True}),
    "gemma2": ("gemma2", {"sliding_window": 10} | GEMMA_2_SCALES),
    "gemma2 without caps": (
        "gemma2", {"sliding_window": 10, "attn_logit_softcapping": None, "final_logit_softcapping": None}
    ),
    "gemma3": ("gemma3_text", GEMMA_3_LAYERS),
    "gemma3 with a scaled global rope": (
        "gemma3_text", {"seed": 1, "rope_parameters": GEMMA_3_ROPES, "final_logit_softcapping": 4.0} | GEMMA_3_LAYERS
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
    model = PagedModel(folder).model
    attention = "torch-sdpa" if model.config.attention_softcap is None else "torch"
    assert model.kernels == {"linear": "torch", "layers": "torch", "attention": attention}


@pytest.mark.parametrize("name", ["llama tied", "gemma", "gemma2", "gemma3"])
def test_bfloat16_stays_near_float32(name: str, tmp_path: Path) -> None:
    family, overrides = VARIANTS[name]
    folder = make_checkpoint(tmp_path, family, **overrides)
    prompt = random_tokens(40)
    exact = PagedModel(folder).prefill(Sequence(), prompt)
    paged, sequence = PagedModel(folder, dtype=torch.bfloat16), Sequence()
    prefilled = paged.prefill(sequence, prompt[:20])
    # decoding rows may take kernels of their own
    decoded = torch.cat([paged.step([Part(sequence, [token])])[0] for token in prompt[20:]])
    rounded = torch.cat((prefilled, decoded))
    assert rounded.dtype == torch.float32
    for part in (slice(0, 20), slice(20, 40)):
        assert float((rounded[part] - exact[part]).abs().mean()) < 0.05 * float(exact[part].abs().mean())


@pytest.mark.parametrize("name", ["llama", "mixtral", "qwen2", "gemma2", "gemma3"])
def test_float64_is_float64_throughout(name: str, tmp_path: Path) -> None:
    family, overrides = VARIANTS[name]
    folder = make_checkpoint(tmp_path, family, **overrides)
    prompt = random_tokens(40)
    whole = PagedModel(folder, dtype=torch.float64).prefill(Sequence(), prompt)
    chunked = PagedModel(folder, dtype=torch.float64).prefill(Sequence(), prompt, chunk=3)
    assert whole.dtype == torch.float64
    # any step through float32 would leave differences of 1e-6
    torch.testing.assert_close(chunked, whole, rtol=0, atol=1e-11)


@pytest.mark.parametrize("name", ["llama", "mixtral with a window", "gemma2", "gemma3"])
def test_a_step_of_several_rows_equals_a_chunk(name: str, tmp_path: Path) -> None:
    family, overrides = VARIANTS[name]
    paged = PagedModel(make_checkpoint(tmp_path, family, **overrides), dtype=torch.float64)
    prompt = random_tokens(40)
    expected = paged.prefill(Sequence(), prompt)
    sequence = Sequence()
    paged.prefill(sequence, prompt[:16])
    verified = torch.cat(
        [paged.step([Part(sequence, prompt[i : i + 6], num_kept=6)])[0] for i in range(16, len(prompt), 6)]
    )
    torch.testing.assert_close(verified, expected[16:], rtol=0, atol=1e-11)


def test_medusa_heads_in_the_models_own_files_are_left_to_others(tmp_path: Path) -> None:
    plain, full = make_checkpoint(tmp_path / "plain"), make_checkpoint(tmp_path / "full")
    tensors = load_file(full / "model.safetensors")
    tensors["medusa_head.0.0.linear.weight"] = torch.zeros(72, 72)
    save_file(tensors, full / "model.safetensors")
    prompt = random_tokens(9)
    assert torch.equal(PagedModel(full).prefill(Sequence(), prompt), PagedModel(plain).prefill(Sequence(), prompt))
