"""Several ranks equal one, in float64, for head counts and sizes that do not divide. One process start per size."""

import contextlib
import multiprocessing
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from shard.distributed import TPGroup
from shard.layers.quantize import Quantization
from shard.process import MEETING
from tests.checkpoints import make_checkpoint
from tests.shard.paged import PagedModel, Part, Sequence, random_tokens

# 9 heads in 3 groups, 5 groups, one kv head for all, more kv heads than divide; vocabulary 131 and widths never divide
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"intermediate_size": 50}),
    "llama tied, biases": ("llama", {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}),
    "llama 5 groups": ("llama", {"hidden": 40, "heads": 10, "kv_heads": 5}),
    "llama one kv head": ("llama", {"hidden": 70, "heads": 7, "kv_heads": 1}),
    "qwen3": ("qwen3", {"heads": 6, "kv_heads": 2, "attention_bias": True}),
    "qwen2": ("qwen2", {"head_dim": 8}),
    "mistral": ("mistral", {"sliding_window": 7}),
    "mixtral": ("mixtral", {"num_local_experts": 5, "intermediate_size": 50}),
    "gemma": ("gemma", {"tie_word_embeddings": True, "kv_heads": 1}),
    # padded columns of the vocabulary must stay -inf through the soft cap
    "gemma2": ("gemma2", {"sliding_window": 7, "attn_logit_softcapping": 3.0, "final_logit_softcapping": 6.0}),
    "gemma3": ("gemma3_text", {"sliding_window": 7, "layer_types": ["sliding_attention", "full_attention"]}),
}


# Where the compiled layers stop for the sum over the ranks; biases and norms behind it are applied once.
IN_16_BIT = ("llama tied, biases", "gemma3")
# A rank that holds some of an output's inputs takes the scale of them all.
IN_8_BIT = ("llama tied, biases", "mixtral")


def run_script(
    folder: Path, group: TPGroup, dtype: torch.dtype = torch.float64, quantize: Quantization | None = None
) -> dict[str, torch.Tensor]:
    """A prefill in two chunks, a mixed step and a decode; all logits."""
    paged = PagedModel(folder, dtype=dtype, group=group, quantize=quantize)
    tokens = random_tokens(40)
    first, second = Sequence(), Sequence()
    return {
        "prefill": paged.prefill(first, tokens[:20], chunk=11),
        "mixed": torch.cat(paged.step([Part(first, tokens[20:24], num_kept=2), Part(second, tokens[:9], direct=True)])),
        "decode": torch.cat(paged.step([Part(first, tokens[22:23]), Part(second, tokens[9:10])])),
    }


def run_all(root: Path, group: TPGroup) -> dict[str, dict[str, torch.Tensor]]:
    results = {name: run_script(root / name, group) for name in MODELS}
    results |= {f"{name}, int8": run_script(root / name, group, quantize="int8") for name in IN_8_BIT}
    return results | {f"{name}, bfloat16": run_script(root / name, group, torch.bfloat16) for name in IN_16_BIT}


def joined(rank: int, size: int, meeting: str) -> TPGroup:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), MEETING: meeting}
    return TPGroup.init("gloo", 60.0)


def assert_collectives(group: TPGroup) -> None:
    rank, size = group.rank, group.size
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64):
        mine = torch.arange(3).to(dtype) + rank
        assert torch.equal(group.all_gather(mine), torch.stack([torch.arange(3).to(dtype) + r for r in range(size)]))
        assert torch.equal(group.broadcast(mine.clone()), torch.arange(3).to(dtype))
        assert torch.equal(group.all_reduce(mine), (torch.arange(3) * size + size * (size - 1) // 2).to(dtype))


def rank_main(rank: int, size: int, meeting: str, root: Path) -> None:
    group = joined(rank, size, meeting)
    assert group.collectives == "shared-memory"
    assert_collectives(group)
    results = run_all(root, group)
    if rank == 0:
        torch.save(results, root / f"results-{size}.pt")
    group.close()


def unequal_rank_main(rank: int, size: int, meeting: str, lacking: int, name: str, nothing: object) -> None:
    """Of the ranks one cannot share memory."""
    lacks = mock.patch(f"shard.cpu.collectives.{name}", return_value=nothing)
    with lacks if rank == lacking else contextlib.nullcontext():
        group = joined(rank, size, meeting)
    assert group.collectives == "gloo"
    assert_collectives(group)
    group.close()


def run_ranks(main: Callable[..., None], size: int, *arguments: object) -> None:
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        meeting = f"{folder}/meeting"
        ranks = [context.Process(target=main, args=(rank, size, meeting, *arguments)) for rank in range(size)]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join(90)
            if process.is_alive():
                process.kill()
    assert [process.exitcode for process in ranks] == [0] * size


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for name, (family, overrides) in MODELS.items():
        make_checkpoint(folder / name, family, **overrides)
    return folder


@pytest.fixture(scope="module")
def alone(root: Path) -> dict[str, dict[str, torch.Tensor]]:
    return run_all(root, TPGroup())


@pytest.mark.parametrize("size", [2, 3, 4])
def test_ranks_together_equal_one_alone(size: int, root: Path, alone: dict[str, dict[str, torch.Tensor]]) -> None:
    run_ranks(rank_main, size, root)
    together = torch.load(root / f"results-{size}.pt", weights_only=True)
    for name, steps in alone.items():
        for step, expected in steps.items():
            # What is rounded to 16 bits may be rounded the other way where sums differ by little.
            atol = 0.05 * float(expected.abs().max()) if name.endswith("bfloat16") else 1e-10
            torch.testing.assert_close(together[name][step], expected, rtol=0, atol=atol, msg=f"{name}, {step}")


@pytest.mark.parametrize(
    ("lacking", "name", "nothing"),
    [(0, "cpu_kernels", None), (1, "cpu_kernels", None), (0, "_make", (None, -1)), (1, "_open", None)],
)
def test_where_one_rank_cannot_share_memory_none_does(lacking: int, name: str, nothing: object) -> None:
    run_ranks(unequal_rank_main, 2, lacking, name, nothing)


def test_a_group_of_one_changes_nothing() -> None:
    group = TPGroup()
    x = torch.randn(3)
    assert group.all_reduce(x) is x
    assert group.broadcast(x) is x
    assert torch.equal(group.all_gather(x), x[None])
    group.close()
