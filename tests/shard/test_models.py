"""The model families against transformers, in float32 on the same weights."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tests.checkpoints import make_checkpoint
from tests.shard.families import VARIANTS
from tests.shard.paged import PagedModel, Part, Sequence, random_tokens


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
