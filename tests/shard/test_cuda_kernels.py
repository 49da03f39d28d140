"""Where there are Triton kernels, and that they compile for the devices that they are for; needs no GPU."""

import logging
import re
import sys
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch

from shard.attention_spec import AttentionSpec
from shard.cuda import kernels
from shard.cuda.device import power_of_two
from shard.cuda.kernels import attention_for
from tests.shard.cuda_steps import Shape, device_spans, random_step, slots_of

CUDA = torch.device("cuda")
# Of programs, with little room and with much, as `shard.cuda.device` tells them apart.
SHARED_MEMORY = {False: 99 << 10, True: 160 << 10}
# What devices have, by compute capability: with little room are those of 8.6 to 8.9.
ROOM = pytest.mark.parametrize(
    ("compile_for_device", "is_roomy"), [(80, True), (89, False), (90, True)], indirect=["compile_for_device"]
)
TYPES = dict.fromkeys(("qkv", "pages", "step_rows", "out"), "*bf16") | {"mixes": "*fp32", "log_sums": "*fp32"}
TYPES |= {"x": "*bf16", "bias": "*bf16", "scales": "*fp32", "sums": "*fp32"}
TYPES |= {
    "cos": "*bf16",
    "sin": "*bf16",
    "rows": "*i32",
    "tables": "*i32",
    "positions": "*i64",
    "marks": "*i64",
    "ancestors": "*u8",
    "values_offset": "i64",
}
ALIGNED = (
    "x",
    "weight",
    "scales",
    "sums",
    "x_stride",
    "num_outputs",
    "num_inputs",
    "qkv",
    "pages",
    "step_rows",
    "out",
    "mixes",
    "qkv_stride",
    "values_offset",
    "steps",
    "steps_stride",
    "pages_stride",
)


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    """What is found out about made-up devices, and what was known before."""
    kernels._load.cache_clear()
    yield
    kernels._load.cache_clear()


def test_the_torch_path_serves_other_devices_and_types() -> None:
    assert attention_for(torch.bfloat16, torch.device("cpu")) is None
    assert attention_for(torch.float64, CUDA) is None


def test_without_triton_the_service_goes_on_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.delitem(sys.modules, "shard.cuda.attention", raising=False)
    monkeypatch.delitem(sys.modules, "shard.cuda.attention_kernels", raising=False)
    monkeypatch.setitem(sys.modules, "triton", None)
    with caplog.at_level(logging.WARNING):
        assert attention_for(torch.bfloat16, CUDA) is None
    assert "triton" in caplog.text


def test_a_device_that_is_too_old_is_named(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    with caplog.at_level(logging.WARNING):
        assert attention_for(torch.bfloat16, CUDA) is None
    assert "Tesla T4 is too old" in caplog.text


def test_slots_follow_from_the_tables_on_the_device() -> None:
    step = random_step(Shape(1, 1, 8, block_size=4), steps=[(3, 5), (30, 1), (0, 2)], chunks=[(9, 7)], trees=True)
    spans = device_spans(step, torch.device("cpu"))
    # Rows behind the step's stand nowhere.
    assert spans.physical_slots[: len(step.qkv)].tolist() == slots_of(step).tolist()


@pytest.fixture(scope="module", params=[80, 90])
def compile_for_device(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Compiles a kernel with these constants, the types of its other parameters being `TYPES` or int32.

    The interpreter does not see what the compiler refuses, nor how much shared memory a program takes.
    """
    if sys.platform != "linux":
        pytest.skip("Triton is made for Linux only")
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    def compiled(kernel: Any, constants: dict[str, Any], types: dict[str, str] | None = None, **options: int) -> Any:
        names = [parameter.name for parameter in kernel.params]
        known = TYPES | (types or {})
        types = {name: "constexpr" if name in constants else known.get(name, "i32") for name in names}
        # As the allocator gives tensors.
        aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if name in ALIGNED}
        source = ASTSource(kernel, types, constants, aligned)
        return triton.compile(source, target=GPUTarget("cuda", request.param, 32), options=options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        yield compiled


def is_early(request: pytest.FixtureRequest) -> bool:
    return request.node.callspec.params["compile_for_device"] >= 90


@pytest.mark.parametrize(
    ("dim", "num_rows", "is_step", "spec"),
    [
        (128, 4, True, AttentionSpec(0.1)),
        (128, 256, True, AttentionSpec(0.1)),
        (128, 8192, False, AttentionSpec(0.1)),
        (64, 256, True, AttentionSpec(0.1, window=128)),
        (256, 256, False, AttentionSpec(0.1, window=4096, softcap=50.0)),
        (256, 256, True, AttentionSpec(0.1)),
    ],
)
@pytest.mark.parametrize(("dtype", "pages"), [("*bf16", "*bf16"), ("*bf16", "*fp8e4nv"), ("*fp16", "*fp16")])
@ROOM
def test_attention_compiles_without_a_gpu(
    compile_for_device: Any,
    dtype: str,
    pages: str,
    is_roomy: bool,
    dim: int,
    num_rows: int,
    is_step: bool,
    spec: AttentionSpec,
    request: pytest.FixtureRequest,
) -> None:
    if pages == "*fp8e4nv" and request.node.callspec.params["compile_for_device"] < 89:
        return
    from shard.cuda.attention import Tiles, _constants
    from shard.cuda.attention_kernels import attend_spans

    tiles = Tiles.of(num_rows=num_rows, dim=dim, dtype=torch.bfloat16, is_roomy=is_roomy)
    scale, cap = _constants(spec)
    constants = {"KV_HEADS": 8, "GROUP": 4, "DIM": dim, "BLOCK_SIZE": 16, "IS_STEP": is_step}
    constants |= {"WINDOW": spec.window, "SCALE": scale, "CAP": cap}
    constants |= {
        "TILE_ROWS": tiles.rows,
        "TILE_KEYS": tiles.keys,
        "PADDED_DIM": tiles.dim,
        "IS_EARLY": is_early(request),
    }
    if not is_step:
        constants |= {"mixes": None, "log_sums": None, "ancestors": None, "cos": None, "sin": None}
    options = {"num_warps": tiles.num_warps, "num_stages": tiles.num_stages}
    types = dict.fromkeys(("qkv", "step_rows", "out", "cos", "sin"), dtype) | {"pages": pages}
    compiled = compile_for_device(attend_spans, constants, types, **options)
    assert compiled.metadata.shared <= SHARED_MEMORY[is_roomy]


def test_merging_compiles_without_a_gpu(compile_for_device: Any) -> None:
    from shard.cuda.attention_kernels import merge_splits

    constants = {"DIM": 128, "SPLITS": 64, "PADDED_DIM": 128, "IS_EARLY": False}
    compiled = compile_for_device(merge_splits, constants)
    assert compiled.metadata.shared <= SHARED_MEMORY[False]


@pytest.mark.parametrize("num_rows", [2, 32, 64])
@pytest.mark.parametrize("splits", [True, False])
@pytest.mark.parametrize("weight", ["*i8", "*fp8e4nv"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@ROOM
def test_products_compile_without_a_gpu(
    compile_for_device: Any,
    is_roomy: bool,
    dtype: torch.dtype,
    weight: str,
    splits: bool,
    num_rows: int,
    request: pytest.FixtureRequest,
) -> None:
    from shard.cuda import product
    from shard.cuda.product_kernels import multiply_tiles

    tiles = product.Tiles.of(num_rows, dtype, torch.int8 if weight == "*i8" else torch.float8_e4m3fn, is_roomy=is_roomy)
    constants = {"TILE_ROWS": tiles.rows, "TILE_OUTPUTS": tiles.outputs, "TILE_INPUTS": tiles.inputs}
    constants |= {"ARE_WEIGHTS_LEFT": tiles.are_weights_left}
    constants |= {"bias": None} if splits else {"bias": None, "sums": None}
    options = {"num_warps": 4, "num_stages": tiles.stages}
    kind = "*bf16" if dtype == torch.bfloat16 else "*fp32"
    call = partial(compile_for_device, multiply_tiles, constants, {"weight": weight, "x": kind, "out": kind}, **options)
    if weight == "*fp8e4nv" and request.node.callspec.params["compile_for_device"] < 89:
        with pytest.raises(Exception, match="fp8e4nv"):
            call()
    else:
        compiled = call()
        assert compiled.metadata.shared <= SHARED_MEMORY[is_roomy]
        # Weights are read 16 bytes at a time.
        assert "cp.async.cg.shared.global" in compiled.asm["ptx"]


def test_adding_compiles_without_a_gpu(compile_for_device: Any) -> None:
    from shard.cuda import product
    from shard.cuda.product_kernels import add_splits

    compile_for_device(add_splits, {"TILE_OUTPUTS": product._TILE_ADDED, "bias": None})


def test_the_clock_compiles_without_a_gpu(compile_for_device: Any) -> None:
    from shard.cuda.stamps import stamp

    compiled = compile_for_device(stamp, {"INDEX": 1})
    assert "globaltimer" in compiled.asm["ptx"]


def test_rows_compile_without_a_gpu(compile_for_device: Any, request: pytest.FixtureRequest) -> None:
    from shard.cuda.row_kernels import multiply_gated, normalise, rotate_heads, write_rotation

    types = {"added": "*bf16", "factor": "*fp32", "cos": "*bf16", "sin": "*bf16", "gate_up": "*bf16", "eps": "fp32"}
    types |= {"frequencies": "*fp32", "scale": "fp32"}
    early = {"IS_EARLY": is_early(request)}
    for added in ({}, {"added": None}):
        compile_for_device(normalise, {"SIZE": 4096, "TILE": 4096, **added, **early}, types, num_warps=8)
    compile_for_device(rotate_heads, {"DIM": 128, "TILE_HEADS": 8, "PADDED_HALF": 64, **early}, types)
    rotation = compile_for_device(write_rotation, {"DIM": 128, "PADDED_HALF": 64, **early}, types, num_warps=2)
    # Angles may be as large as the context is long.
    assert not re.search(r"(cos|sin)\.approx", rotation.asm["ptx"])
    for gate in ("silu", "gelu_tanh"):
        compile_for_device(multiply_gated, {"WIDTH": 14336, "GATE": gate, "TILE": 1024, **early}, types)


@pytest.mark.parametrize("width", [1, 8])
def test_the_best_of_rows_compile_without_a_gpu(
    compile_for_device: Any, width: int, request: pytest.FixtureRequest
) -> None:
    from shard.cuda.best_kernels import best_of_parts, best_of_rows

    types = {"scores": "*fp32", "part_values": "*fp32", "part_columns": "*i32", "values": "*fp32", "log_sums": "*fp32"}
    common = {"WIDTH": width, "IS_EARLY": is_early(request)}
    unused = {"sums": None} if width == 1 else {}
    compile_for_device(best_of_parts, common | {"TILE": 1024} | unused, types | {"columns": "*i32"})
    unused |= {"log_sums": None} if width == 1 else {}
    compile_for_device(best_of_rows, common | {"PARTS": 256, "TILE": 256 * width} | unused, types | {"columns": "*i64"})


@pytest.mark.parametrize("num_rows", [1, 16, 64, 128])
def test_deciding_compiles_without_a_gpu(
    compile_for_device: Any, num_rows: int, request: pytest.FixtureRequest
) -> None:
    from shard.cuda.decide import num_warps
    from shard.cuda.decide_kernels import decide_sequences

    pointers = ("slots", "tokens", "cells", "drafts", "parents", "num_drafts", "texts", "num_tokens", "max_num_tokens")
    types = dict.fromkeys((*pointers, "num_pending", "stops", "decided"), "*i64")
    types |= {"on_path": "*u8", "finished": "*u8"}
    constants = {"PADDED_ROWS": max(num_rows, 16), "PADDED_DEPTH": 16, "IS_EARLY": is_early(request)}
    constants |= {"on_path": None} if num_rows == 1 else {}
    compile_for_device(decide_sequences, constants, types, num_warps=num_warps(num_rows))


@pytest.mark.parametrize("pages", ["*bf16", "*fp8e4nv"])
@pytest.mark.parametrize(("kv_heads", "dim"), [(8, 128), (3, 80)])
def test_committing_compiles_without_a_gpu(
    compile_for_device: Any, kv_heads: int, dim: int, pages: str, request: pytest.FixtureRequest
) -> None:
    if pages == "*fp8e4nv" and request.node.callspec.params["compile_for_device"] < 89:
        return
    from shard.cuda.commit_kernels import commit_paths

    types = dict.fromkeys(("first_rows", "path", "num_kept", "physical_slots"), "*i64")
    types |= {"steps": "*bf16", "pages": pages, "pages_stride": "i64"}
    sizes = {"PADDED_HEADS": power_of_two(2 * kv_heads, least=1), "PADDED_DIM": power_of_two(dim, least=1)}
    constants = {"KV_HEADS": kv_heads, "DIM": dim, "BLOCK_SIZE": 16, "IS_EARLY": is_early(request)} | sizes
    ptx = compile_for_device(commit_paths, constants, types).asm["ptx"]
    # Rows are read 16 bytes at a time.
    assert "ld.global.v4.b32" in ptx


@pytest.mark.parametrize(("width", "padded"), [(1, 32), (33, 64), (65, 128)])
def test_laying_out_compiles_without_a_gpu(
    compile_for_device: Any, width: int, padded: int, request: pytest.FixtureRequest
) -> None:
    from shard.cuda.layout_kernels import lay_out_sequence

    numbers = ("max_total_tokens", "tree_size", "num_blocks")
    types = {p.name: "*i64" for p in lay_out_sequence.params if p.name not in numbers}
    types |= {"finished": "*i1", "tables": "*i32", "on_path": "*u8", "span_rows": "*i32"}
    constants = {"BLOCK_SIZE": 16, "WIDTH": width, "PADDED_WIDTH": padded, "IS_EARLY": is_early(request)}
    compiled = compile_for_device(lay_out_sequence, constants, types, num_warps=padded // 32)
    # Threads have nothing to tell each other.
    assert compiled.metadata.shared == 0
    assert "bar.sync" not in compiled.asm["ptx"]


def of_drafters(kernel: Any, request: pytest.FixtureRequest, **constants: Any) -> tuple[dict[str, Any], dict[str, str]]:
    """Constants and types of a kernel of drafters, of a server with lookup of 8 tokens and four heads."""
    types = {p.name: "*i64" for p in kernel.params if not p.is_constexpr}
    numbers = [p.name for p in kernel.params if p.name == "length" or p.name.startswith("num_") or "stride" in p.name]
    of_slots = dict.fromkeys(("num_tokens", "num_pending"), "*i64")
    types |= dict.fromkeys(numbers, "i32") | {n: t for n, t in of_slots.items() if n in types}
    reals = ("right", "tested", "own_right", "own_said", "head_right", "head_said", "said", "probabilities", "costs")
    sums = ("lookup_above", "lookup_below", "lookup_prior", "head_above", "head_below", "head_prior")
    of_type = {"*fp32": (*reals, *sums, "asked_lookup", "asked_heads", "log_ps", "totals"), "*fp64": ("prices",)}
    of_type |= {"*i32": ("found", "ranks", "followers"), "*i1": ("finished",), "*u8": ("on_path",)}
    types |= {name: type for type, names in of_type.items() for name in names if name in types}
    sizes: dict[str, Any] = {"DEPTH": 8, "HEADS": 4, "WIDTH": 8, "PARTS": 32, "LEAST_MATCH": 1, "MOST_MATCH": 8}
    sizes |= {"SUREST_LOOKUP": 0.99, "SUREST_HEAD": 0.999, "PADDED_DEPTHS": 8, "PADDED_COLUMNS": 16}
    sizes |= {"KEPT": 0.9995, "WEIGHT": 4.0, "OWN_KEPT": 0.95, "OWN_WEIGHT": 2.0, "NUM_METHODS": 3, "MATCHES": 9}
    sizes |= {"PADDED_DEPTH": 8, "PADDED_MATCHES": 16, "PADDED_SAID": 32, "PADDED_PATH": 16, "PADDED_CELLS": 32}
    sizes |= {"MOST": 30, "PADDED_MOST": 32, "IS_EARLY": is_early(request)} | constants
    names = {p.name for p in kernel.params}
    return {name: value for name, value in sizes.items() if name in names}, types


@pytest.mark.parametrize("unused", [[], ["said"], ["matches"], ["counts", "on_path"]])
def test_learning_compiles_without_a_gpu(
    compile_for_device: Any, unused: list[str], request: pytest.FixtureRequest
) -> None:
    from shard.cuda.learn_kernels import learn

    none = dict.fromkeys(unused)
    compile_for_device(learn, *of_drafters(learn, request, SIZE=32, PADDED_ROWS=64, TILE=32, **none), num_warps=4)


@pytest.mark.parametrize(("size", "columns"), [(32, 8), (32, 9), (64, 9)])
def test_drafting_compiles_without_a_gpu(
    compile_for_device: Any, size: int, columns: int, request: pytest.FixtureRequest
) -> None:
    from shard.cuda.chain_kernels import draft_chains
    from shard.cuda.drafter import _num_warps
    from shard.cuda.lookup_kernels import look_up_parts
    from shard.cuda.price_kernels import rank_drafts, take_drafts
    from shard.cuda.tree_kernels import draft_trees

    sizes = {"SIZE": size, "ROWS": size}
    for kernel, tile in ((look_up_parts, 1024), (rank_drafts, 128), (take_drafts, 1024)):
        compile_for_device(kernel, *of_drafters(kernel, request, **sizes, TILE=tile), num_warps=4)
    compile_for_device(draft_chains, *of_drafters(draft_chains, request, **sizes), num_warps=1)
    places = power_of_two(size * columns, least=1)
    constants: dict[str, Any] = {"COLUMNS": columns, "PLACES": places} | sizes
    # Without lookup there is no column for a guess.
    constants |= {"found": None} if columns == 8 else {}
    trees = compile_for_device(
        draft_trees, *of_drafters(draft_trees, request, **constants), num_warps=_num_warps(places)
    )
    # Nodes stay in registers.
    assert "st.local" not in trees.asm["ptx"]
    # The least one of a warp is found at once.
    assert "redux.sync.min" in trees.asm["ptx"]


@pytest.mark.parametrize("gate", [None, "silu"])
@pytest.mark.parametrize("weight", ["*bf16", "*fp8e4nv"])
def test_the_product_of_a_row_begins_early(
    compile_for_device: Any, weight: str, gate: str | None, request: pytest.FixtureRequest
) -> None:
    from shard.cuda.product_kernels import multiply_row

    if not is_early(request):
        return
    constants = {"GATE": gate, "TILE_OUTPUTS": 4, "TILE_INPUTS": 1024, "IS_EARLY": True, "bias": None}
    constants |= {"scales": None} if weight == "*bf16" else {}
    ptx = compile_for_device(multiply_row, constants, {"weight": weight}, num_warps=2).asm["ptx"]
    # Weights are asked for, 16 bytes at a time, before what earlier kernels wrote is waited for.
    before = ptx[: ptx.index("griddepcontrol.wait")]
    assert "ld.global.v4" in before


def test_without_a_c_compiler_there_are_no_kernels_and_one_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise RuntimeError("Failed to find C compiler")

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(kernels, "_compile_launcher", fail)
    device = torch.device("cuda", 7)  # the answer is kept for each
    for _ in range(2):
        assert kernels.attention_for(torch.bfloat16, device) is None
    assert [record.getMessage() for record in caplog.records] == [
        "serving without Triton kernels, which is slower: Failed to find C compiler"
    ]
