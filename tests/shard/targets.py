"""The compiled kernels for each arithmetic that this processor has, not the best alone: others have less."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from shard.cpu import build
from shard.cpu.kernels import cpu_kernels


def _targets() -> list[str]:
    """Without AVX-512's bfloat16, then without AVX-512, where there is such a thing."""
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text().split() if cpuinfo.exists() else []
    narrower = [("avx512_bf16", "x86-64-v4"), ("avx512f", "x86-64-v3")]
    return ["native", *(target for flag, target in narrower if flag in flags)]


TARGETS = _targets()


@contextmanager
def compiled_for(target: str) -> Iterator[None]:
    """Within it the kernels are those for `target`, as -march names it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "_COMPILE", (*build._COMPILE, f"-march={target}"))
        cpu_kernels.cache_clear()
        assert cpu_kernels() is not None, "these tests need a C compiler"
        yield
    cpu_kernels.cache_clear()
