"""Kernels in C for bfloat16 on CPU, compiled where a C compiler is, and the choice between them and torch's operations.

Between two matrix products a step does little arithmetic, but each small operation finds its code evicted by the
weights that streamed through the cache; one call instead of ten is what these save. Every kernel has a path of torch
operations beside it that says what it must compute.
"""
