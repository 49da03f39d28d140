"""The folder of finished heads: Medusa's own file names and keys, the base's tokenizer beside them, and our figures."""

import json
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import nn

from launcher.medusa import BASE_REVISION
from trainer.evaluate import Evaluation
from trainer.files import save_whole, write_json
from trainer.heads import head_tensors, to_bfloat16

# Servers that take a heads repo for the model look for its tokenizer in it.
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)
_FIGURES = "drafthouse_medusa.json"


def write_heads(
    output: Path,
    heads: nn.ModuleList,
    *,
    base_name: str,
    base_revision: str | None,
    base_folder: Path,
    version: str,
    num_layers: int,
    evaluation: Evaluation,
    token_ids: list[int] | None,
) -> None:
    """`base_name`, `base_revision`: what servers find the base by. `token_ids`: all that the heads may propose."""
    output.mkdir(parents=True, exist_ok=True)
    # Of earlier heads: a kill from here on leaves none beside the figures of others. --medusa needs no config.json.
    for name in ("config.json", _FIGURES):
        (output / name).unlink(missing_ok=True)
    for name in _TOKENIZER_FILES:
        if (base_folder / name).is_file():
            shutil.copyfile(base_folder / name, output / name)
    figures: dict[str, Any] = {} if token_ids is None else {"token_ids": token_ids}
    figures |= {
        "acceptance": evaluation.acceptance,
        "probability": evaluation.probability,
        "accuracy": {"held_out_tokens": evaluation.num_tokens, "base": evaluation.base, "heads": evaluation.accuracy},
    }
    # One list a line: thousands of numbers are no reading matter.
    lines = ",\n".join(f'"{key}": {json.dumps(value)}' for key, value in figures.items())
    text = "{\n" + lines + "\n}\n"
    tensors = to_bfloat16(head_tensors(heads))
    save_whole(output / "medusa_lm_head.safetensors", lambda path: save_file(tensors, path, metadata={"format": "pt"}))
    save_whole(output / _FIGURES, lambda path: path.write_text(text, encoding="utf-8"))
    config: dict[str, Any] = {
        "base_model_name_or_path": base_name,
        "medusa_num_heads": len(heads),
        "medusa_num_layers": num_layers,
    }
    config |= {"version": "2"} if version == "v2" else {}
    config |= {BASE_REVISION: base_revision} if base_revision is not None else {}
    # Last: without it the folder is not one of heads.
    write_json(output / "config.json", config)
