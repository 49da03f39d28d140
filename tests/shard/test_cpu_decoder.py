"""All layers in one compiled call: against the same weights in float32, and against itself in other company."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from shard.cpu.kernels import NAME, cpu_kernels
from shard.cpu.tiles import LEAST_ROWS
from tests.checkpoints import make_checkpoint
from tests.shard.families import VARIANTS
from tests.shard.paged import PagedModel, Part, Sequence, random_tokens
from tests.shard.targets import TARGETS, compiled_for

DENSE = {name: variant for name, variant in VARIANTS.items() if variant[0] != "mixtral"}
# head_dim 12 is no multiple of a vector; 64 is the one that the kernel knows by heart.
HEADS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama, heads of 12": ("llama", {"hidden": 48, "heads": 4, "kv_heads": 2, "head_dim": 12}),
    "llama, heads of 64": ("llama", {"hidden": 64, "heads": 4, "kv_heads": 1, "head_dim": 64}),
}
MODELS = DENSE | HEADS
# Targets differ in the arithmetic of vectors: on all but the first so many models meet all of it.
ON_EVERY_TARGET = (*HEADS, "llama biases", "qwen3", "gemma2")
EVERY_MODEL = pytest.mark.parametrize(
    ("target", "folder"),
    [(target, name) for target in TARGETS for name in (MODELS if target == TARGETS[0] else ON_EVERY_TARGET)],
    indirect=True,
)


@pytest.fixture(scope="module", autouse=True, params=TARGETS)
def target(request: pytest.FixtureRequest) -> Iterator[None]:
    with compiled_for(request.param):
        yield


@pytest.fixture(autouse=True)
def no_hardware(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a processor without bfloat16, whatever this one has."""
    monkeypatch.setattr(torch._C, "_has_mkldnn", False)


def make(folder: Path, variant: tuple[str, dict[str, Any]]) -> Path:
    """A checkpoint whose values bfloat16 holds exactly."""
    family, overrides = variant
    make_checkpoint(folder, family, **overrides)
    for file in folder.glob("*.safetensors"):
        save_file({k: v.bfloat16() for k, v in load_file(file).items()}, file, metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("model"), MODELS[request.param])


def compiled(folder: Path) -> PagedModel:
    paged = PagedModel(folder, dtype=torch.bfloat16)
    assert paged.model.kernels["layers"] == NAME
    return paged


def script(paged: PagedModel) -> list[torch.Tensor]:
    """Chunks of a prompt, a tree beside another prompt, a decode."""
    tokens, first, second = random_tokens(60), Sequence(), Sequence()
    tree = Part(first, [tokens[41], *tokens[50:56]], parents=[0, 1, 0, 3, 3, 5], kept=[0, 3, 5])
    return [
        paged.prefill(first, tokens[:41], chunk=23),
        *paged.step([tree, Part(second, tokens[:19], direct=True)]),
        *paged.step([Part(first, [tokens[57]]), Part(second, [tokens[19]])]),
    ]


@EVERY_MODEL
def test_many_rows_go_layer_by_layer_where_the_processor_has_tiles(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    floats = torch.cat(long_script(compiled(folder)))
    monkeypatch.setattr("shard.cpu.kernels.has_tiles", lambda: True)
    cpu_kernels.cache_clear()
    try:
        paged = compiled(folder)
        tiles = torch.cat(long_script(paged))
    finally:
        monkeypatch.undo()
        cpu_kernels.cache_clear()
    if "tiles" in paged.model.kernels["arithmetic"]:
        assert not torch.equal(tiles, floats)
    assert (tiles - floats).square().mean().sqrt() < 0.02 * floats.abs().max()


def long_script(paged: PagedModel) -> list[torch.Tensor]:
    """A prompt of many rows, a decode."""
    tokens, sequence = random_tokens(LEAST_ROWS + 8), Sequence()
    return [
        paged.prefill(sequence, tokens[: LEAST_ROWS + 7], chunk=LEAST_ROWS),
        *paged.step([Part(sequence, tokens[-1:])]),
    ]


@EVERY_MODEL
def test_logits_are_nearer_to_float32_than_those_of_layers_one_by_one(folder: Path) -> None:
    """Which round after every operation; here keys, values and the last hidden states are."""
    wide, layers = torch.cat(script(PagedModel(folder))), compiled(folder)
    ours = torch.cat(script(layers))
    one_by_one = compiled(folder)
    one_by_one.model._compiled = None
    error = (ours - wide).square().mean().sqrt()
    assert error < (torch.cat(script(one_by_one)) - wide).square().mean().sqrt()
    assert error < 0.02 * wide.abs().max()


def test_layers_that_are_no_plain_mlp_go_on_one_by_one(tmp_path: Path) -> None:
    paged = PagedModel(make(tmp_path, VARIANTS["mixtral"]), dtype=torch.bfloat16)
    assert paged.model.kernels["layers"] == "torch"
    script(paged)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, target: None) -> tuple[Path, list[int], torch.Tensor]:
    """A model with all that a row's surroundings could touch, and the logits of a text's rows, each decoded alone."""
    variant = ("gemma3_text", {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 21})
    folder = make(tmp_path_factory.mktemp("model"), variant)
    tokens = random_tokens(70)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch._C, "_has_mkldnn", False)
        paged, sequence = compiled(folder), Sequence()
        rows = [paged.step([Part(sequence, [token])])[0] for token in tokens]
    return folder, tokens, torch.cat(rows)


@settings(max_examples=25)
@given(data=st.data())
def test_a_row_is_the_same_to_the_last_bit_in_any_company(
    alone: tuple[Path, list[int], torch.Tensor], data: st.DataObject
) -> None:
    """Prompt chunks, drafts that were right beside drafts that were wrong, other sequences: no bit of a row changes."""
    folder, tokens, expected = alone
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch._C, "_has_mkldnn", False)
        paged = compiled(folder)
    sequence, other = Sequence(), Sequence()
    paged.prefill(other, random_tokens(data.draw(st.integers(1, 40)), seed=1))
    rows: list[torch.Tensor] = []
    while len(sequence.token_ids) < len(tokens):
        done = len(sequence.token_ids)
        company = [Part(other, random_tokens(data.draw(st.integers(1, 5)), seed=done))]
        if data.draw(st.booleans()):
            chunk = tokens[done : done + data.draw(st.integers(1, 40))]
            rows.append(paged.step([*company, Part(sequence, chunk, direct=True)])[-1])
            continue
        right = tokens[done : done + data.draw(st.integers(1, 6))]
        # Of the tree's rows the right ones are a path; what is between them hangs somewhere.
        ids, parents, path = [right[0]], [], [0]
        for token in right[1:]:
            for _ in range(data.draw(st.integers(0, 2))):
                parents.append(data.draw(st.integers(0, len(ids) - 1)))
                ids.append(random_tokens(1, seed=len(ids))[0])
            parents.append(path[-1])
            path.append(len(ids))
            ids.append(token)
        logits = paged.step([Part(sequence, ids, parents=parents, kept=path), *company])[0]
        rows.append(logits[path])
    assert torch.equal(torch.cat(rows), expected)
