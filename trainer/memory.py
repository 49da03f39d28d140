"""What is said where the memory of a GPU does not suffice. Knows nothing of what it is needed for."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from trainer.errors import TrainError


@contextmanager
def enough_memory(what: str, advice: str) -> Iterator[None]:
    """TrainError where it is not enough for `what`; `advice` says what would need less."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise TrainError(
            f"{what} needs more memory than the GPU has free ({str(error).splitlines()[0]}); "
            f"{advice}. What is done is kept: the same command goes on from here"
        ) from error
