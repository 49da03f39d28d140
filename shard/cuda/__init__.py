"""Triton kernels for CUDA. Nothing outside imports Triton: `kernels` says whether there are any, and hands them out."""
