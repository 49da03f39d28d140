"""The compiled kernels for each arithmetic that this processor has, not the best alone: others have less."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from shard.cpu import build
from shard.cpu.kernels import cpu_kernels


def _targets() -> list[str]:
    """With AVX-512's bfloat16 where it is not taken, or without; without its integers; without AVX-512. Where there is
    such a thing."""
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text().split() if cpuinfo.exists() else []
    pairs = "-D__AVX512BF16__" if build._WITHOUT_PAIRS in build._flags() else build._WITHOUT_PAIRS
    others = [("avx512_bf16", pairs), ("avx512_vnni", "-U__AVX512VNNI__"), ("avx512f", "-march=x86-64-v3")]
    return ["-march=native", *(target for flag, target in others if flag in flags)]


TARGETS = _targets()


@contextmanager
def compiled_for(target: str) -> Iterator[None]:
    """Within it the kernels are those for `target`, a flag of the compiler."""
    flags = *build._flags(), target
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "_flags", lambda: flags)
        cpu_kernels.cache_clear()
        assert cpu_kernels() is not None, "these tests need a C compiler"
        yield
    cpu_kernels.cache_clear()
