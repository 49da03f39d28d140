"""Every format of Medusa heads, and every trap seen in the wild, gives the guesses that the description asks for; what
is broken or of another model is one clear error."""

import io
import json
import os
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from shard.checkpoint import Checkpoint, CheckpointError
from shard.medusa.checkpoint import MedusaCheckpoint, open_heads
from tests.checkpoints import make_checkpoint
from tests.medusa_checkpoints import (
    FLAVOURS,
    Flavour,
    HeadWeights,
    medusa_tensors,
    random_heads,
    vllm_tensors,
    write_full_model,
    write_heads,
)
from tests.shard.medusa_reference import (
    HIDDEN,
    VOCABULARY,
    assert_same,
    hidden_states,
    lm_head_of,
    load,
    reference,
)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("base"), num_layers=1, hidden=HIDDEN, vocab=VOCABULARY)


def heads_of(num_heads: int = 3, num_layers: int = 1, *, tied: bool = False) -> list[HeadWeights]:
    return random_heads(num_heads, num_layers, HIDDEN, VOCABULARY, tied=tied)


def assert_guesses(
    folder: Path, base: Path, heads: list[HeadWeights], *, token_ids: list[int] | None = None, width: int = 4
) -> None:
    hidden = hidden_states()
    loaded = load(folder, base)
    assert loaded is not None
    assert_same(
        loaded.candidates(hidden, width), reference(heads, hidden, width, lm_head=lm_head_of(base), token_ids=token_ids)
    )


@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("flavour", FLAVOURS)
def test_every_format_gives_the_same_guesses(flavour: Flavour, num_layers: int, base: Path, tmp_path: Path) -> None:
    heads = heads_of(num_layers=num_layers, tied=flavour == "v2")
    assert_guesses(write_heads(tmp_path, heads, flavour, base="org/base"), base, heads)


@pytest.mark.parametrize("flavour", ["v1", "v1-pt", "vllm"])
def test_heads_without_a_block_are_bare_projections(flavour: Flavour, base: Path, tmp_path: Path) -> None:
    heads = heads_of(num_layers=0)
    assert_guesses(write_heads(tmp_path, heads, flavour, base="org/base"), base, heads)


@pytest.mark.parametrize("tied", [False, True])
def test_heads_in_the_files_of_a_whole_model(tied: bool, base: Path, tmp_path: Path) -> None:
    heads = heads_of(tied=tied)
    full = write_full_model(tmp_path / "full", base, heads, architectures=["MedusaLlamaForCausalLM"])
    hidden = hidden_states()
    loaded = load(full, full)
    assert loaded is not None
    assert loaded.description.startswith("full model")
    assert_same(loaded.candidates(hidden, 4), reference(heads, hidden, 4, lm_head=lm_head_of(base)))


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_the_tensors_are_believed_and_not_the_config(flavour: Flavour, base: Path, tmp_path: Path) -> None:
    heads = heads_of(5, tied=flavour == "v2")
    lies = {"medusa_num_heads": 2, "num_heads": 2, "medusa_num_layers": None, "num_hidden_layers": 3}
    lies |= {"architectures": ["LlamaForCausalLM"]}
    assert_guesses(write_heads(tmp_path, heads, flavour, base="org/base", **lies), base, heads)


def test_a_file_in_16_bits_serves_in_another_type(base: Path, tmp_path: Path) -> None:
    heads = random_heads(2, 1, HIDDEN, VOCABULARY, tied=False, dtype=torch.bfloat16)
    assert_guesses(write_heads(tmp_path, heads, "v1", base="org/base"), base, heads)


def test_heads_of_vllm_that_share_the_lm_head(base: Path, tmp_path: Path) -> None:
    heads = heads_of(tied=True)
    assert_guesses(write_heads(tmp_path, heads, "vllm", base="org/base"), base, heads)


@pytest.mark.parametrize("name", ["lm_heads.0.weight", "medusa_heads.lm_head.weight"])
def test_a_copy_of_the_lm_head_in_a_file_of_vllm_is_not_read(name: str, base: Path, tmp_path: Path) -> None:
    heads = heads_of(tied=True)
    write_heads(tmp_path, heads, "vllm", base="org/base")
    file = tmp_path / "model.safetensors"
    save_file(load_file(file) | {name: torch.full((VOCABULARY, HIDDEN), torch.nan)}, file)
    assert_guesses(tmp_path, base, heads)


@pytest.mark.parametrize("with_map", [False, True])
def test_heads_of_vllm_for_some_of_the_vocabulary(with_map: bool, base: Path, tmp_path: Path) -> None:
    heads = random_heads(3, 1, HIDDEN, 40, tied=False)
    token_ids = torch.randperm(VOCABULARY, generator=torch.Generator().manual_seed(1))[:40].tolist()
    write_heads(tmp_path, heads, "vllm", base="org/base", truncated_vocab_size=40, vocab_size=VOCABULARY)
    if with_map:
        file = tmp_path / "model.safetensors"
        save_file(load_file(file) | {"token_map": torch.tensor(token_ids)}, file)
    assert_guesses(tmp_path, base, heads, token_ids=token_ids if with_map else None)


def test_heads_of_vllm_may_have_no_bias_if_their_config_says_so(base: Path, tmp_path: Path) -> None:
    heads = [HeadWeights([(w, torch.zeros_like(b)) for w, b in head.blocks], head.projection) for head in heads_of()]
    write_heads(tmp_path, heads, "vllm", base="org/base", medusa_fc_bias=False)
    file = tmp_path / "model.safetensors"
    save_file({name: tensor for name, tensor in load_file(file).items() if not name.endswith(".bias")}, file)
    assert_guesses(tmp_path, base, heads)
    write_heads(tmp_path / "with", heads, "vllm", base="org/base")
    (tmp_path / "config.json").write_text((tmp_path / "with" / "config.json").read_text())
    with pytest.raises(CheckpointError, match="bias of block 0 of head 0 is missing"):
        load(tmp_path, base)


def test_a_dropped_bias_and_heads_off_by_one_are_noticed(base: Path, tmp_path: Path) -> None:
    heads = [HeadWeights([(w, 10 * b) for w, b in head.blocks], head.projection) for head in heads_of()]
    loaded = load(write_heads(tmp_path, heads, "v1", base="org/base"), base)
    assert loaded is not None
    hidden = hidden_states(20)
    found = loaded.candidates(hidden, 1).token_ids
    dropped = [HeadWeights([(w, torch.zeros_like(b)) for w, b in head.blocks], head.projection) for head in heads]
    assert (found == reference(dropped, hidden, 1).token_ids).double().mean() < 0.5
    assert (found[:, :-1] == reference(heads[1:], hidden, 1).token_ids).double().mean() < 0.2


def test_a_model_without_heads_has_none(base: Path, tmp_path: Path) -> None:
    assert load(base, base) is None
    assert open_heads(tmp_path) is None


def test_heads_that_are_not_asked_for_are_not_read(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_heads(tmp_path, heads_of(5), "v1", base="org/base")
    names = []
    read = MedusaCheckpoint.read

    def spy(self: MedusaCheckpoint, name: str, *, dim: int, start: int, stop: int) -> Tensor:
        names.append(name)
        return read(self, name, dim=dim, start=start, stop=stop)

    monkeypatch.setattr(MedusaCheckpoint, "read", spy)
    loaded = load(tmp_path, base, num_heads=2)
    assert loaded is not None
    assert loaded.num_heads == 2
    assert sorted(names) == sorted(
        name for i in (0, 1) for name in (f"blocks.{i}.0.weight", f"blocks.{i}.0.bias", f"projections.{i}.weight")
    )
    hidden = hidden_states()
    assert_same(loaded.candidates(hidden, 3), reference(heads_of(5)[:2], hidden, 3))


def test_more_heads_than_there_are(base: Path, tmp_path: Path) -> None:
    write_heads(tmp_path, heads_of(3), "v1", base="org/base")
    with pytest.raises(CheckpointError, match=r"--speculate 5 asks for 5 Medusa heads, but .* has 3"):
        load(tmp_path, base, num_heads=5)


@pytest.mark.parametrize("name", list(medusa_tensors(heads_of(2, 2))))
def test_any_missing_tensor_is_an_error_that_names_its_head(name: str, base: Path, tmp_path: Path) -> None:
    tensors = medusa_tensors(heads_of(3, 2))
    del tensors[name]
    save_file(tensors, tmp_path / "medusa_lm_head.safetensors")
    with pytest.raises(CheckpointError, match=f"of head {name[0]} is missing"):
        load(tmp_path, base)


def test_a_block_that_is_missing_in_all_heads(base: Path, tmp_path: Path) -> None:
    tensors = {name: t for name, t in medusa_tensors(heads_of(2, 2)).items() if ".1.linear" not in name}
    save_file(tensors, tmp_path / "medusa_lm_head.safetensors")
    with pytest.raises(CheckpointError, match=r"0\.2\.weight .* comes after 2 blocks, but there are 1"):
        load(tmp_path, base)


def test_a_head_with_a_great_number_is_one_of_many_that_are_missing(base: Path, tmp_path: Path) -> None:
    """And no reason to write a list of them."""
    bias = torch.zeros(HIDDEN)
    save_file({"999999999999.0.linear.bias": bias}, tmp_path / "medusa_lm_head.safetensors")
    with pytest.raises(CheckpointError, match=r"holds 1000000000000 Medusa heads, .* of head 0 is missing"):
        load(tmp_path, base)


@pytest.mark.parametrize("shape", [(), (HIDDEN,), (0, HIDDEN), (1, VOCABULARY, HIDDEN)])
def test_a_projection_of_an_odd_shape(shape: tuple[int, ...], base: Path, tmp_path: Path) -> None:
    tensors = medusa_tensors(heads_of(1))
    save_file(tensors | {"0.1.weight": torch.zeros(shape)}, tmp_path / "medusa_lm_head.safetensors")
    with pytest.raises(CheckpointError, match=r"tensor 0\.1\.weight .* has shape \["):
        load(tmp_path, base)


def test_a_tensor_that_is_no_part_of_heads(base: Path, tmp_path: Path) -> None:
    for tensors in (medusa_tensors(heads_of()), vllm_tensors(heads_of())):
        file = tmp_path / ("model.safetensors" if "blocks.0.layers.0.bias" in tensors else "medusa_lm_head.safetensors")
        save_file(tensors | {"norm.weight": torch.ones(HIDDEN)}, file)
        with pytest.raises(CheckpointError, match=r"norm\.weight .* is not a part of Medusa heads"):
            load(tmp_path, base)
        file.unlink()


@pytest.mark.parametrize(
    ("hidden", "vocab", "message"),
    [
        (64, VOCABULARY, r"hidden size of 64 \(tensor 0.0.linear.bias\), the model has 72"),
        (HIDDEN, 140, r"vocabulary of 140 tokens \(tensor 0.1.weight\), the model has 131"),
        (HIDDEN, 100, r"vocabulary of 100 tokens \(tensor 0.1.weight\), the model has 131"),
    ],
)
def test_heads_for_another_model(hidden: int, vocab: int, message: str, base: Path, tmp_path: Path) -> None:
    write_heads(tmp_path, random_heads(2, 1, hidden, vocab, tied=False), "v1", base="org/base")
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path, base)


class Harmful:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.folder),)


def _pickled_with_torch(file: Path) -> None:
    torch.save(medusa_tensors(heads_of()) | {"extra": Harmful(file.parent / "harm")}, file)


def _pickled_plainly(file: Path) -> None:
    file.write_bytes(pickle.dumps({"0.0.linear.weight": Harmful(file.parent / "harm")}))


def _whole_module(file: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), file)


def _list(file: Path) -> None:
    torch.save([torch.zeros(2)], file)


def _numbered(file: Path) -> None:
    torch.save({0: torch.zeros(2)}, file)


def _nested(file: Path) -> None:
    torch.save({"state_dict": medusa_tensors(heads_of())}, file)


def _text(file: Path) -> None:
    file.write_text("version https://git-lfs.github.com/spec/v1\n" * 4)


def _empty(file: Path) -> None:
    file.write_bytes(b"")


def _half(file: Path) -> None:
    torch.save(medusa_tensors(heads_of()), file)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def _damaged(file: Path) -> None:
    """In the old format, whose pickle comes first; each of its bytes leads torch elsewhere."""
    torch.save(medusa_tensors(heads_of()), file, _use_new_zipfile_serialization=False)
    content = file.read_bytes()
    file.write_bytes(content[:40] + b"." * 30 + content[70:])


def _sparse(file: Path) -> None:
    torch.save({name: tensor.to_sparse() for name, tensor in medusa_tensors(heads_of()).items()}, file)


def _zip(file: Path) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("readme", "nothing")


def _tar(file: Path) -> None:
    with tarfile.open(file, "w") as archive:
        archive.addfile(tarfile.TarInfo("storages"), io.BytesIO())


BAD_FILES: list[Callable[[Path], None]] = [
    _pickled_with_torch,
    _pickled_plainly,
    _whole_module,
    _list,
    _numbered,
    _nested,
    _text,
    _empty,
    _half,
    _damaged,
    _sparse,
    _zip,
    _tar,
]


@pytest.mark.parametrize("write", BAD_FILES)
def test_a_pt_file_with_more_or_less_than_tensors_is_refused(
    write: Callable[[Path], None], base: Path, tmp_path: Path
) -> None:
    write(tmp_path / "medusa_lm_head.pt")
    with pytest.raises(CheckpointError, match=r"medusa_lm_head\.pt .* save the heads as medusa_lm_head.safetensors"):
        load(tmp_path, base)
    assert not (tmp_path / "harm").exists()


def test_a_pt_file_of_an_old_torch_is_read(base: Path, tmp_path: Path) -> None:
    heads = heads_of()
    torch.save(medusa_tensors(heads), tmp_path / "medusa_lm_head.pt", _use_new_zipfile_serialization=False)
    assert_guesses(tmp_path, base, heads)


def test_a_broken_safetensors_file_is_named(base: Path, tmp_path: Path) -> None:
    (tmp_path / "medusa_lm_head.safetensors").write_bytes(b"\x00" * 20)
    with pytest.raises(CheckpointError, match=r"medusa_lm_head\.safetensors is truncated or not a safetensors file"):
        load(tmp_path, base)


def test_a_whole_model_that_lacks_a_tensor_of_a_head(base: Path, tmp_path: Path) -> None:
    full = write_full_model(tmp_path / "full", base, heads_of(2))
    file = full / "model-00002-of-00002.safetensors"
    name = "medusa_head.1.0.linear.bias"
    save_file({n: t for n, t in load_file(file).items() if n != name}, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=name):
        Checkpoint(full)
    index = json.loads((full / "model.safetensors.index.json").read_text())
    del index["weight_map"][name]
    (full / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="the bias of block 0 of head 1 is missing"):
        load(full, full)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"token_map": torch.arange(39)}, "token_map has not one entry for each of the 40 rows"),
        ({"token_map": torch.arange(40) + VOCABULARY - 39}, f"outside the vocabulary of {VOCABULARY}"),
        ({"token_map": torch.arange(40) - 1}, f"outside the vocabulary of {VOCABULARY}"),
        ({"medusa_heads.lm_heads.0.weight": torch.zeros(40, HIDDEN)}, "are for the same place"),
        ({"lm_head.weight": torch.zeros(40, HIDDEN)}, "original_lm_head in config.json does not say so"),
    ],
)
def test_what_does_not_fit_in_a_file_of_vllm_is_named(
    extra: dict[str, Tensor], message: str, base: Path, tmp_path: Path
) -> None:
    heads = random_heads(3, 1, HIDDEN, 40, tied=False)
    write_heads(tmp_path, heads, "vllm", base="org/base", truncated_vocab_size=40, vocab_size=VOCABULARY)
    file = tmp_path / "model.safetensors"
    save_file(load_file(file) | extra, file)
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path, base)


@pytest.mark.parametrize(("config", "message"), [("{", "is not valid JSON"), ("[]", "does not hold a JSON object")])
def test_a_broken_config_beside_heads_of_vllm_is_named(config: str, message: str, base: Path, tmp_path: Path) -> None:
    write_heads(tmp_path, heads_of(), "vllm", base="org/base")
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(CheckpointError, match=rf"config\.json {message}"):
        load(tmp_path, base)


def test_heads_of_vllm_without_a_config_are_read(base: Path, tmp_path: Path) -> None:
    heads = heads_of()
    write_heads(tmp_path, heads, "vllm", base="org/base")
    (tmp_path / "config.json").unlink()
    assert_guesses(tmp_path, base, heads)
