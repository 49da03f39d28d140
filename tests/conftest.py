"""For all tests: none of them is about time, and other work on the machine may slow any of them down."""

import signal
from collections.abc import Iterator
from contextlib import suppress

import pytest

# Tests for a GPU run with what its machine has (bench/gpu/marked_tests.py).
with suppress(ImportError):
    from hypothesis import settings

    settings.register_profile("drafthouse", deadline=None)
    settings.load_profile("drafthouse")


@pytest.fixture(autouse=True)
def _own_signals() -> Iterator[None]:
    """Commands that are run in this process set what signals do; other tests keep theirs."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    # Whoever runs the tests may ignore it, and so would what they start.
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)
