from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from tests.checkpoints import make_checkpoint
from trainer.model import mark_of


def test_a_base_is_known_by_what_it_says_whatever_lies_beside_it(tmp_path: Path) -> None:
    file = make_checkpoint(tmp_path) / "model.safetensors"
    before = mark_of(tmp_path)
    file.touch()
    (tmp_path / "generation_config.json").write_text("{}")
    save_file({"0.linear.weight": torch.zeros(3, 3)}, tmp_path / "medusa_lm_head.safetensors")
    assert mark_of(tmp_path) == before
    weights = load_file(file)
    name = "model.layers.1.self_attn.v_proj.weight"
    save_file(weights | {name: weights[name] + 1e-3}, file)
    trained_on = mark_of(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("")
    assert len({before, trained_on, mark_of(tmp_path)}) == 3
