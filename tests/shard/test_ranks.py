"""Ranks in processes of their own bring, step by step, what one alone brings. On CPU; on a GPU, which is one for all of
them, so that only gloo joins them and nothing is captured; and NCCL's collectives in captured steps, of one rank."""

import multiprocessing
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from shard.distributed import TPGroup
from shard.plan import StepPlan, StepResult
from shard.process import MEETING
from tests.shard.planned_runs import CASE_IDS, CASES, Case
from tests.shard.triton_device import needs_gpu

_TIMEOUT_S = 240
# Number format and the digits of log-probabilities that sums in another order leave as they are.
ON_CPU, ON_GPU = ("float64", 9), ("float32", 3)


class NcclOfOne(TPGroup):
    """Its collectives are NCCL's, though there is nobody else."""

    num_called = 0

    @classmethod
    def init(cls, backend: str, timeout_s: float) -> "NcclOfOne":
        device = torch.device("cuda", 0)
        torch.cuda.set_device(device)
        store = dist.FileStore(os.environ[MEETING], 1)  # type: ignore[attr-defined]  # public, but in no __all__
        dist.init_process_group(backend, rank=0, world_size=1, store=store, device_id=device)
        return cls()

    def all_reduce(self, x: Tensor) -> Tensor:
        self.num_called += 1
        dist.all_reduce(x)
        return x

    def all_gather(self, x: Tensor) -> Tensor:
        self.num_called += 1
        out = x.new_empty((1, *x.shape))
        dist.all_gather(list(out.unbind()), x.contiguous())
        return out

    def broadcast(self, x: Tensor) -> Tensor:
        self.num_called += 1
        dist.broadcast(x, src=0)
        return x


def _join(rank: int, size: int, meeting: Path) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": "0", MEETING: str(meeting)}


def _rank_over_gloo(rank: int, size: int, meeting: Path, case: Case, dtype: str, digits: int, results: Path) -> None:
    _join(rank, size, meeting)
    if dtype == "float64":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    join = TPGroup.init
    with (
        mock.patch.object(TPGroup, "init", lambda backend, timeout_s: join("gloo", timeout_s)),
        mock.patch("shard.rank.capture_for", return_value=None),
    ):
        runner = case.rank(dtype).runner
    digests: list[int] = []

    def launch(plan: StepPlan) -> Callable[[], StepResult]:
        finish = runner.launch(plan)

        def finished() -> StepResult:
            result = finish()
            digests.append(result.digest)
            return result

        return finished

    steps = case.run(runner, launch, digits=digits).results()
    results.with_name(f"rank-{rank}").write_bytes(pickle.dumps((digests, steps)))
    runner.step.group.close()


@pytest.mark.parametrize(
    ("dtype", "digits"), [ON_CPU, pytest.param(*ON_GPU, marks=[pytest.mark.gpu, needs_gpu])], ids=["cpu", "gpu"]
)
def test_two_ranks_bring_what_one_brings(dtype: str, digits: int, tmp_path: Path) -> None:
    case = Case.make(tmp_path, *CASES[CASE_IDS.index("sampled heads")])
    expected = case.run(case.rank(dtype).runner, digits=digits).results()
    size, meeting = 2, tmp_path / "meeting"
    _run([(rank, size, meeting, case, dtype, digits, tmp_path / "results") for rank in range(size)], _rank_over_gloo)
    found = [pickle.loads((tmp_path / f"rank-{rank}").read_bytes()) for rank in range(size)]
    assert found[0] == (found[1][0], expected)


def _rank_over_nccl(meeting: Path, case: Case, results: Path) -> None:
    _join(0, 1, meeting)
    with mock.patch("shard.rank.TPGroup", NcclOfOne):
        runner = case.rank("float32").runner
    group = runner.step.group
    assert isinstance(group, NcclOfOne)
    found = []
    for _ in range(2):
        called = group.num_called
        found.append(case.run(runner, digits=ON_GPU[1]).results())
        num_called = group.num_called - called
        runner.reset()
    # Of the second time's 59 steps three have prompts and most of the others are replayed, in which nobody calls.
    assert 0 < num_called < called
    results.write_bytes(pickle.dumps(found))
    # As a shard ends: NCCL waits for graphs that hold its work.
    os._exit(0)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("name", ["greedy lookup", "sampled heads"])
def test_graphs_hold_the_collectives_of_nccl(name: str, tmp_path: Path) -> None:
    case = Case.make(tmp_path, *CASES[CASE_IDS.index(name)])
    expected = case.run(case.rank("float32").runner, digits=ON_GPU[1]).results()
    _run([(tmp_path / "meeting", case, tmp_path / "results")], _rank_over_nccl)
    assert pickle.loads((tmp_path / "results").read_bytes()) == [expected] * 2


def _run(arguments: list[tuple[object, ...]], main: Callable[..., None]) -> None:
    """A process for each, all of which must end well."""
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=main, args=each) for each in arguments]
    for process in processes:
        process.start()
    for process in processes:
        process.join(_TIMEOUT_S)
        if process.is_alive():
            process.kill()
    assert [process.exitcode for process in processes] == [0] * len(processes)
