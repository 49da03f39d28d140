"""Bytes of a step, of a checkpoint that is made here."""

import json
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from bench.weights import bytes_read_per_step, kv_bytes_per_token
from tests.checkpoints import make_checkpoint


@pytest.mark.parametrize("is_tied", [False, True])
def test_a_step_reads_every_matrix_but_an_embedding_of_its_own(is_tied: bool, tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, "llama", tie_word_embeddings=is_tied)
    model = AutoModelForCausalLM.from_pretrained(folder)
    read = sum(parameter.numel() for parameter in model.parameters())
    if not is_tied:
        read -= model.model.embed_tokens.weight.numel()
    assert bytes_read_per_step(folder, "bfloat16") == 2 * read


def test_in_8_bits_the_layers_matrices_are_a_byte_a_value_and_have_scales(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, "llama")
    layers = AutoModelForCausalLM.from_pretrained(folder).model.layers
    matrices = [parameter for parameter in layers.parameters() if parameter.dim() == 2]
    saved = sum(parameter.numel() - 4 * len(parameter) for parameter in matrices)
    wide = bytes_read_per_step(folder, "bfloat16")
    assert bytes_read_per_step(folder, "bfloat16", is_int8=True) == wide - saved


@pytest.mark.parametrize("head_dim", [None, 8])
def test_keys_and_values_of_a_token(head_dim: int | None, tmp_path: Path) -> None:
    config = {"num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "hidden_size": 576}
    (tmp_path / "config.json").write_text(json.dumps(config | {"head_dim": head_dim}))
    assert kv_bytes_per_token(tmp_path, "bfloat16") == 30 * 2 * 3 * (head_dim or 64) * 2
