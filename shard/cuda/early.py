"""Programmatic dependent launch, in Triton's language: a kernel is started while the one before it still runs, and
waits by itself where it needs what that wrote (CUDA programming guide; compute capability 9.0).

So what lies between two kernels is saved, and a kernel that reads weights asks for them before it waits. Every kernel
that begins early must wait before it ends: whoever waits for it then knows that all before are done.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit
def begin_early(IS_EARLY: tl.constexpr):
    """First of all: the next kernel may be started when all programs of this one are."""
    if IS_EARLY:
        gdc_launch_dependents()


@triton.jit
def wait_for_inputs(IS_EARLY: tl.constexpr):
    """Before anything is read that a kernel wrote, or written."""
    if IS_EARLY:
        gdc_wait()


@triton.jit
def begin_with_inputs(IS_EARLY: tl.constexpr):
    """Both, of a kernel that can do nothing without its inputs."""
    begin_early(IS_EARLY)
    wait_for_inputs(IS_EARLY)
