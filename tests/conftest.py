"""For all tests: none of them is about time, and other work on the machine may slow any of them down."""

import logging
import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.interpreted import is_interpreted

# Tests for a GPU run with what its machine has (bench/gpu/marked_tests.py).
with suppress(ImportError):
    from hypothesis import settings

    settings.register_profile("drafthouse", deadline=None)
    settings.load_profile("drafthouse")


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Tests of Triton's kernels are run by test_triton_interpreter.py where there is no GPU: here all of them would be
    skipped, and a skip is to say that something is missing."""
    if not is_interpreted(collection_path) or os.environ.get("TRITON_INTERPRET") == "1":
        return None
    # Only here: many tests need no torch.
    import torch

    return None if torch.cuda.is_available() else True


@pytest.fixture(autouse=True)
def _own_signals() -> Iterator[None]:
    """Commands that are run in this process set what signals do; other tests keep theirs."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    # Whoever runs the tests may ignore it, and so would what they start.
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def own_root_logger() -> Iterator[None]:
    """For tests that configure it."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level
