"""The tests of the Triton kernels on CPU, by Triton's interpreter, in processes of their own.

Whether it compiles or interprets is decided when Triton is imported, which other tests may cause.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.interpreted import interpreted_files

_TESTS = Path(__file__).parent
_FILES = [str(file.relative_to(_TESTS)) for file in interpreted_files()]


def test_the_files_that_are_meant_for_it_are_found() -> None:
    assert {file.name for file in (_TESTS / "shard").glob("test_cuda_*.py")} - {Path(file).name for file in _FILES} == {
        # Compiles and looks for kernels, and runs none.
        "test_cuda_kernels.py"
    }
    assert [file for file in _FILES if not file.startswith("shard/test_cuda_")] == ["bench/test_gpu_steps.py"]


@pytest.mark.skipif(sys.platform != "linux", reason="Triton is made for Linux only")
@pytest.mark.parametrize("file", _FILES)
def test_kernels_pass_their_tests_when_interpreted(file: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", str(_TESTS / file)],
        cwd=_TESTS.parent,
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    # A file whose tests are all skipped ends well too.
    assert re.search(r"\b[1-9]\d* passed", done.stdout.splitlines()[-1]), done.stdout
