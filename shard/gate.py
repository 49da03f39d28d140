"""What the gate of an MLP goes through."""

from typing import Literal

# gelu by its tanh approximation (arXiv 1606.08415, 2).
Gate = Literal["silu", "gelu_tanh"]
