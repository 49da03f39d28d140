from pathlib import Path

import pytest

from launcher.machine import Machine, installed_gpus, usable_cores, visible_gpus


@pytest.mark.parametrize(
    ("selection", "expected"),
    [(None, 4), ("", 0), ("0,2", 2), ("1", 1), ("-1", 0), ("0,-1,2", 1), ("GPU-aa, GPU-bb", 2), ("0,1,2,3,4,5", 4)],
)
def test_visible_gpus_are_those_cuda_would_show(selection: str | None, expected: int) -> None:
    environ = {} if selection is None else {"CUDA_VISIBLE_DEVICES": selection}
    assert visible_gpus(environ, installed=4) == expected


@pytest.mark.parametrize(
    ("cores", "shards", "threads"), [(2, 1, 2), (3, 1, 2), (2, 2, 1), (1, 4, 1), (8, 1, 7), (9, 4, 2), (8, 4, 2)]
)
def test_shards_share_the_cores_and_leave_one_for_the_router_where_two_are_left_for_each(
    cores: int, shards: int, threads: int
) -> None:
    assert Machine(num_gpus=0, num_cores=cores).threads_per_shard(shards) == threads


def test_without_its_tool_gpus_are_known_by_their_device_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("launcher.machine._DEVICES", tmp_path)
    assert installed_gpus() == 0
    for name in ("nvidia0", "nvidia11", "nvidiactl", "nvidia-uvm", "null"):
        (tmp_path / name).touch()
    assert installed_gpus() == 2


@pytest.mark.parametrize(
    ("limit", "cores"),
    [
        ("max 100000", 8),
        ("200000 100000", 2),
        # What is left of a core is no core, but one there always is.
        ("250000 100000", 2),
        ("50000 100000", 1),
        ("300000 50000", 6),
        ("1600000 100000", 8),
        ("of another kernel", 8),
        ("", 8),
        (None, 8),
    ],
)
def test_a_containers_limit_bounds_the_cores(
    limit: str | None, cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "cpu.max"
    if limit is not None:
        file.write_text(limit + "\n")
    monkeypatch.setattr("launcher.machine._CGROUP_CPU_MAX", file)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    assert usable_cores() == cores
