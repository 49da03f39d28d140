"""How many blocks there are for which memory, and that the steps measured for it are the largest."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from shard.config import ConfigError, ShardConfig
from shard.cuda.graphs import GraphCapture
from shard.largest_steps import most_drafts, run_largest
from shard.made_up import MadeUpSteps
from shard.memory import StepBytes, available_bytes, least_free_bytes, num_kv_blocks, peak_bytes
from shard.plan import StepPlan, StepResult
from shard.rank import build_rank
from shard.speculation import Proposal
from shard.speculation.drafter import SpeculationSizes
from tests.checkpoints import make_checkpoint
from tests.shard.configs import shard_config
from tests.shard.recorded import as_on_a_gpu

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
GB = 1 << 30


def config_of(*flags: str, model: Path = Path("unused")) -> ShardConfig:
    sizes = ("--max-total-tokens=100", "--block-size=16", "--max-batch-size=4")
    return shard_config(model, "--dtype=float32", *sizes, *flags)


def blocks(available: int, device: torch.device, *flags: str) -> int:
    return num_kv_blocks(config_of(*flags), bytes_per_block=1000, available=available, device=device)


def test_blocks_are_what_fits_and_never_more_than_all_sequences_can_fill() -> None:
    assert blocks(20_999, CPU) == 20
    # Seven hold one sequence, and four run at once.
    assert blocks(1_000_000, CUDA) == 28


def test_on_a_cpu_one_sequence_may_take_more_than_is_given_by_default() -> None:
    gb = {"bytes_per_block": GB, "available": 100 * GB}
    assert num_kv_blocks(config_of(), device=CPU, **gb) == 7
    assert num_kv_blocks(config_of(), device=CPU, bytes_per_block=GB // 10, available=100 * GB) == 10
    with pytest.raises(ConfigError, match="left for 80 tokens"):
        num_kv_blocks(config_of(), device=CPU, bytes_per_block=GB, available=5 * GB)


@pytest.mark.parametrize("available", [-5, 0, 6_999])
def test_memory_for_less_than_one_sequence_is_refused_with_what_there_is(available: int) -> None:
    with pytest.raises(ConfigError, match=f"left for {max(available, 0) // 1000 * 16} tokens"):
        blocks(available, CUDA)


def test_what_the_user_asks_for_is_given_unless_a_gpu_has_no_room() -> None:
    assert blocks(0, CPU, "--max-batch-total-tokens=200") == 13
    assert blocks(13_000, CUDA, "--max-batch-total-tokens=200") == 13
    with pytest.raises(ConfigError, match=r"200 is more than the GPU has memory for, 192 tokens"):
        blocks(12_999, CUDA, "--max-batch-total-tokens=200")


def test_on_a_cpu_a_containers_limit_is_what_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = tmp_path / "memory.max", tmp_path / "memory.limit_in_bytes"
    monkeypatch.setattr("shard.memory._CGROUP_LIMITS", limits)
    monkeypatch.setattr("os.sysconf", lambda name: {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 4 * GB // 4096}[name])

    def available() -> int:
        return available_bytes(config_of(), device=CPU, ranks_on_host=2, largest=StepBytes())

    assert available() == GB // 2
    for text, expected in (("max\n", GB // 2), (f"{2 * GB}\n", GB // 4), (f"{1 << 63}\n", GB // 2)):
        for limit in limits:
            limit.write_text(text)
            assert available() == expected
            limit.unlink()


def test_a_gpu_keeps_its_share_the_largest_step_and_room_for_captured_ones_free(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (60 * GB, 80 * GB))
    config = config_of("--memory-fraction=0.9")
    largest = StepBytes(peak=5 * GB)
    assert least_free_bytes(config, device=CUDA, largest=largest) == pytest.approx(13 * GB, abs=1)
    assert available_bytes(config, device=CUDA, ranks_on_host=1, largest=largest) == pytest.approx(47 * GB, abs=1)
    captured = StepBytes(peak=5 * GB, captured=7 * GB)
    assert least_free_bytes(config, device=CUDA, largest=captured) == pytest.approx(13 * GB, abs=1)
    assert available_bytes(config, device=CUDA, ranks_on_host=1, largest=captured) == pytest.approx(38 * GB, abs=2)


@pytest.mark.parametrize(
    ("free", "shared", "has_room"),
    [
        (19 * GB, 0, True),
        (19 * GB - 1, 0, False),
        (17 * GB, 2 * GB, True),
        (17 * GB - 1, 2 * GB, False),
        (13 * GB, 9 * GB, True),
        (13 * GB - 1, 9 * GB, False),
    ],
)
def test_a_step_is_captured_only_where_what_graphs_share_may_still_grow(
    free: int, shared: int, has_room: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("synchronize", "empty_cache"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: None)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 1))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free, 80 * GB))
    others = {"segment_pool_id": (0, 0), "total_size": 50 * GB}
    own = [{"segment_pool_id": (0, 1), "total_size": size} for size in (GB, shared - GB) if shared]
    monkeypatch.setattr(torch.cuda, "memory_snapshot", lambda: [others, *own])
    assert GraphCapture(CUDA, least_free=13 * GB, most_shared=6 * GB).has_room() is has_room


def test_what_a_step_takes_is_its_peak_and_too_much_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("synchronize", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda _: None)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 3 * GB)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: 5 * GB)
    assert peak_bytes(CUDA, lambda: None) == 2 * GB

    def too_large() -> None:
        raise torch.OutOfMemoryError("no room")

    def too_many_graphs() -> None:
        raise torch.AcceleratorError("CUDA error: out of memory")

    def no_end_of_capture() -> None:
        try:
            too_large()
        finally:
            raise torch.AcceleratorError("CUDA error: operation failed due to a previous error during capture")

    for fails in (too_large, too_many_graphs, no_end_of_capture):
        with pytest.raises(ConfigError, match="lower --max-batch-prefill-tokens"):
            peak_bytes(CUDA, fails)

    def broken() -> None:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    with pytest.raises(torch.AcceleratorError, match="illegal"):
        peak_bytes(CUDA, broken)


@pytest.mark.parametrize(
    ("room", "expected"), [(0, [0, 0, 0, 0]), (3, [3, 0, 0, 0]), (13, [6, 6, 1, 0]), (99, [6] * 4)]
)
def test_drafts_fill_the_step_with_the_largest_trees(room: int, expected: list[int]) -> None:
    sizes = SpeculationSizes(num_speculative_tokens=3, tree_size=6, num_heads=0, tree_width=1)
    assert most_drafts(config_of(f"--max-batch-draft-tokens={room}"), sizes) == expected


def test_no_step_can_be_larger_than_those_that_are_run_and_nothing_is_left_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As many blocks as one sequence needs: the others share them.
    flags = "--speculate=3", "--max-batch-prefill-tokens=130", "--max-batch-draft-tokens=7"
    config = config_of(*flags, "--max-batch-total-tokens=100", model=make_checkpoint(tmp_path))
    runner = build_rank(config).runner
    plans: list[StepPlan] = []
    launch = runner.launch

    def recorded(plan: StepPlan) -> Callable[[], StepResult]:
        plans.append(plan)
        return launch(plan)

    monkeypatch.setattr(runner, "launch", recorded)
    sizes = SpeculationSizes(num_speculative_tokens=3, tree_size=3, num_heads=0, tree_width=1)
    steps = MadeUpSteps(runner, config, sizes=sizes)
    run_largest(steps, config, sizes, [Proposal.LOOKUP])
    chunks = [step for plan in plans for step in plan.sequences if step.chunk_length]
    assert (chunks[0].chunk_start, chunks[0].chunk_length) == (0, 99)
    full = next(plan for plan in plans if {bool(step.chunk_length) for step in plan.sequences} == {True, False})
    assert [(step.verify, step.chunk_length) for step in full.sequences] == [(3, 0), (3, 0), (0, 99), (0, 31)]
    decodes = [plan for plan in plans if not any(step.chunk_length for step in plan.sequences)]
    assert [plan.proposal for plan in decodes] == [Proposal.NONE, Proposal.LOOKUP]
    for plan in decodes:
        assert [step.verify for step in plan.sequences] == [3, 3, 1, 0]
    sampled = [new for plan in plans[1:] for new in plan.new_sequences]
    assert all(new.sampling.is_filtered and new.logprobs for new in sampled)
    assert not runner.states.host


def test_the_largest_steps_leave_the_spare_slot_without_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose rows would be written there for ever: sequences are short beside what a step may bring."""
    as_on_a_gpu(monkeypatch)
    flags = "--max-total-tokens=48", "--speculate=16", "--max-batch-draft-tokens=64"
    config = config_of(*flags, model=make_checkpoint(tmp_path))
    runner = build_rank(config).runner
    sizes = SpeculationSizes(num_speculative_tokens=16, tree_size=16, num_heads=0, tree_width=1)
    steps = MadeUpSteps(runner, config, sizes=sizes)
    run_largest(steps, config, sizes, [Proposal.LOOKUP], times=2)
    tables = runner.states.block_tables
    assert tables[:-1].any()
    assert not tables[runner.states.spare_slot].any()
