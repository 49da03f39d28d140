"""The machine in words."""

import os
import platform
from dataclasses import dataclass
from pathlib import Path

from launcher.machine import usable_cores


@dataclass(frozen=True, slots=True)
class Machine:
    """`weights_bytes`: of the weights that a decode step reads; `kv_bytes`: of a token's keys and values."""

    description: str
    weights_bytes: int
    kv_bytes: int


def describe_machine() -> str:
    """Processor, cores, memory, and how busy others keep it: the load that is there before the benchmark begins."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    processor = names[0] if names else platform.machine()
    return (
        f"{processor}, {usable_cores()} cores, {memory_gib:.0f} GiB, Linux {platform.release()}, "
        f"load {os.getloadavg()[0]:.1f} before the start"
    )
