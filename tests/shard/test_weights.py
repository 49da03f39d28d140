"""Loading proves itself: each way in which a checkpoint can be wrong gives one error that names it."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from shard.checkpoint import CheckpointError
from shard.distributed import TPGroup
from shard.model_config import ModelConfig
from shard.models import load_model
from tests.checkpoints import make_checkpoint

Q_PROJ = "model.layers.1.self_attn.q_proj.weight"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "model"))


def load(folder: Path, progress: Callable[[int, int], None] | None = None) -> torch.nn.Module:
    return load_model(
        ModelConfig.from_folder(folder),
        folder,
        group=TPGroup(),
        dtype=torch.float32,
        device=torch.device("cpu"),
        progress=progress,
    )


def change(folder: Path, edit: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors")


def split_files(folder: Path) -> None:
    """Write the checkpoint as two files with an index."""
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    weight_map = {}
    for i in range(2):
        part = {name: tensors[name] for name in names[i::2]}
        save_file(part, folder / f"part-{i}.safetensors")
        weight_map |= dict.fromkeys(part, f"part-{i}.safetensors")
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def check_refused(folder: Path, *words: str) -> None:
    with pytest.raises(CheckpointError) as error:
        load(folder)
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


def test_several_files_load_like_one(folder: Path) -> None:
    single = load(folder)
    split_files(folder)
    several = load(folder)
    for name, parameter in single.named_parameters():
        assert torch.equal(several.get_parameter(name), parameter)


def test_a_single_file_counts_and_not_the_index_beside_it(folder: Path) -> None:
    """As in transformers; the other files may be of an older state."""
    whole, expected = (folder / "model.safetensors").read_bytes(), numbers(load(folder))
    change(folder, lambda tensors: tensors.update({Q_PROJ: torch.zeros_like(tensors[Q_PROJ])}))
    split_files(folder)
    (folder / "model.safetensors").write_bytes(whole)
    assert all(map(torch.equal, numbers(load(folder)), expected))


def test_progress_counts_every_byte_once(folder: Path) -> None:
    seen: list[tuple[int, int]] = []
    load(folder, lambda done, total: seen.append((done, total)))
    size = sum(tensor.nbytes for tensor in load_file(folder / "model.safetensors").values())
    assert seen[-1] == (size, size)
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})


def test_a_folder_without_weights_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    check_refused(folder, str(folder), "model.safetensors")


def test_a_file_that_only_the_index_knows_is_refused(folder: Path) -> None:
    split_files(folder)
    (folder / "part-1.safetensors").unlink()
    check_refused(folder, "part-1.safetensors", "missing")


@pytest.mark.parametrize(
    "content", ["[1, 2]", '{"weight_map": {"x": 5}}', '{"weight_map": {"x": "../model.safetensors"}}']
)
def test_an_index_that_is_not_one_is_refused(content: str, folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(content)
    check_refused(folder, "model.safetensors.index.json", "not a safetensors index")


def test_a_tensor_is_read_from_the_file_that_the_index_names(folder: Path) -> None:
    expected = numbers(load(folder))
    split_files(folder)
    parts = [load_file(folder / f"part-{i}.safetensors") for i in range(2)]
    for i, (own, other) in enumerate((parts, parts[::-1])):
        # Each also holds old values of what the other has.
        save_file(
            own | {name: torch.zeros_like(value) for name, value in other.items()}, folder / f"part-{i}.safetensors"
        )
    assert all(map(torch.equal, numbers(load(folder)), expected))


def test_numbers_without_their_scales_are_refused(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    name = next(name for name in tensors if name.endswith("down_proj.weight"))
    save_file(tensors | {name: tensors[name].to(torch.int8)}, folder / "model.safetensors")
    check_refused(folder, name, "torch.int8")


def test_a_tensor_that_only_the_index_knows_is_refused(folder: Path) -> None:
    split_files(folder)
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["model.extra"] = "part-0.safetensors"
    index.write_text(json.dumps(content))
    check_refused(folder, "part-0.safetensors", "model.extra")


@pytest.mark.parametrize("kept", [0, 5, 100, 50_000])
def test_a_truncated_file_is_refused(folder: Path, kept: int) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    check_refused(folder, str(file), "truncated")


def test_a_missing_tensor_is_named(folder: Path) -> None:
    change(folder, lambda tensors: tensors.pop(Q_PROJ))
    check_refused(folder, Q_PROJ, "missing")


def test_a_tensor_without_a_place_is_named(folder: Path) -> None:
    change(folder, lambda tensors: tensors.update({"model.layers.2.mlp.up_proj.weight": torch.zeros(3)}))
    check_refused(folder, "model.layers.2.mlp.up_proj.weight", "no place")


def test_a_wrong_shape_is_named_with_both_shapes(folder: Path) -> None:
    change(folder, lambda tensors: tensors.update({Q_PROJ: torch.zeros(100, 72)}))
    check_refused(folder, Q_PROJ, "[100, 72]", "[144, 72]")


def test_old_rotary_constants_are_ignored(folder: Path) -> None:
    change(folder, lambda tensors: tensors.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(8)}))
    load(folder)


def test_a_tied_head_may_be_stored_as_it_is_and_an_untied_one_must_be(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    check_refused(folder, "ties lm_head.weight to model.embed_tokens.weight", "tie_word_embeddings to false")
    change(folder, lambda tensors: tensors.update({"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}))
    load(folder)
    (folder / "config.json").write_text(json.dumps(config))
    change(folder, lambda tensors: tensors.pop("lm_head.weight"))
    check_refused(folder, "lm_head.weight")


def test_a_refused_message_shows_no_internal_path(folder: Path) -> None:
    change(folder, lambda tensors: tensors.pop("model.norm.weight"))
    with pytest.raises(CheckpointError, match=re.escape("tensor model.norm.weight is missing from the weights files")):
        load(folder)


def numbers(model: torch.nn.Module) -> list[Tensor]:
    products = [module.product.weight for module in model.modules() if hasattr(module, "product")]
    return [*products, *model.state_dict().values()]


def test_threads_that_read_ahead_fill_the_same_model(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = numbers(load(folder))
    said: list[tuple[int, int]] = []
    monkeypatch.setattr("shard.weights._num_threads", lambda device: 3)
    found = numbers(load(folder, lambda done, total: said.append((done, total))))
    assert len(found) == len(expected) > 10
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    assert said == sorted(said)
    assert said[-1][0] == said[-1][1]
