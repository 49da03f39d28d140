"""Numbers of the host as tensors on a device that nobody waits for, and the way back.

`torch.tensor(…, device=…)` waits until a GPU has done all that it was given; this only queues the copy. It is staged
before the call returns, so the list may go at once.
"""

from array import array

import torch
from torch import Tensor

_HOST = torch.device("cpu")


def is_readable(device: torch.device) -> bool:
    """Whether a look at values waits for nothing. On a GPU it would stop the pipeline: what depends on values is
    computed there, and there is room for all that may be."""
    return device.type == "cpu"


def integers(values: list[int], device: torch.device = _HOST) -> Tensor:
    """int64. An array between list and tensor takes a quarter of the time."""
    if not values:
        return torch.empty(0, dtype=torch.int64, device=device)
    return torch.frombuffer(array("q", values), dtype=torch.int64).to(device, non_blocking=True)


def copied_to_host(tensor: Tensor) -> Tensor:
    """There once the device has come so far."""
    return tensor.to("cpu", non_blocking=True)
