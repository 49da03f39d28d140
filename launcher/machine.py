"""What this machine offers: visible GPUs and usable cores. Asks the driver and the kernel, never torch."""

import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_DEVICES = Path("/dev")
_CGROUP_CPU_MAX = Path("/sys/fs/cgroup/cpu.max")


@dataclass(frozen=True, slots=True)
class Machine:
    num_gpus: int
    num_cores: int

    def threads_per_shard(self, num_shard: int) -> int:
        """An equal share of the cores; one stays free for the router where every shard still gets two.

        On two cores a shard takes both: its step was measured at 28 ms with two threads and 45 with one, and the router
        needs 1.5 ms of a step.
        """
        usable = self.num_cores - 1 if self.num_cores > 2 * num_shard else self.num_cores
        return max(1, usable // num_shard)


def inspect_machine(environ: Mapping[str, str]) -> Machine:
    return Machine(num_gpus=visible_gpus(environ, installed_gpus()), num_cores=usable_cores())


def visible_gpus(environ: Mapping[str, str], installed: int) -> int:
    """GPUs that CUDA will show: CUDA_VISIBLE_DEVICES up to its first invalid entry, never more than are installed."""
    selection = environ.get("CUDA_VISIBLE_DEVICES")
    if selection is None:
        return installed
    count = 0
    for entry in selection.split(","):
        name = entry.strip()
        if not name or name.startswith("-"):
            break
        count += 1
    return min(count, installed)


def installed_gpus() -> int:
    """NVIDIA GPUs by `nvidia-smi -L`, or by their device files where that tool is missing: a container that was given
    no GPU has none of these, while it may well see the driver."""
    try:
        listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return sum(device.name.removeprefix("nvidia").isdigit() for device in _DEVICES.glob("nvidia*"))
    return sum(line.startswith("GPU ") for line in listing.splitlines())


def usable_cores() -> int:
    """Cores this process may run on, by its affinity and by the CPU limit of its container (cgroup v2)."""
    cores = len(os.sched_getaffinity(0))
    try:
        quota, period = _CGROUP_CPU_MAX.read_text().split()
    except (OSError, ValueError):
        return cores
    return cores if quota == "max" else max(1, min(cores, int(quota) // int(period)))
