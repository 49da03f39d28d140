"""Where Triton's kernels are tested: compiled on a GPU, else by Triton's interpreter on the CPU, in a process where
TRITON_INTERPRET is set (tests/test_triton_interpreter.py)."""

import os

import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cpu" if INTERPRETED else "cuda")
# The interpreter multiplies no bfloat16.
DTYPES = [torch.float16, torch.float32, *([] if INTERPRETED else [torch.bfloat16])]

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
