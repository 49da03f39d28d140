"""The tests of the Triton kernels on CPU, by Triton's interpreter, in processes of their own.

Whether it compiles or interprets is decided when Triton is imported, which other tests may cause.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

_TESTS = Path(__file__).parent
_FILES = (
    "shard/test_cuda_attention.py",
    "shard/test_cuda_product.py",
    "shard/test_cuda_rows.py",
    "shard/test_cuda_best.py",
    "shard/test_cuda_commit.py",
    "shard/test_cuda_decide.py",
    "shard/test_cuda_drafter.py",
    "shard/test_cuda_layout.py",
    "shard/test_cuda_forward.py",
    "bench/test_gpu_steps.py",
)


@pytest.mark.skipif(sys.platform != "linux", reason="Triton is made for Linux only")
@pytest.mark.parametrize("file", _FILES)
def test_kernels_pass_their_tests_when_interpreted(file: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", str(_TESTS / file)],
        cwd=_TESTS.parent,
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
