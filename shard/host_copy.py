"""Numbers of the host as tensors on a device that nobody waits for.

`torch.tensor(…, device=…)` waits until a GPU has done all that it was given; this only queues the copy. It is staged
before the call returns, so the list may go at once.
"""

import torch
from torch import Tensor


def integers(values: list[int], device: torch.device) -> Tensor:
    """int64."""
    return torch.tensor(values, dtype=torch.int64).to(device, non_blocking=True)
