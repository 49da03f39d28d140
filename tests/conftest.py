"""For all tests: none of them is about time, and other work on the machine may slow any of them down."""

from contextlib import suppress

# Tests for a GPU run with what its machine has (bench/gpu/marked_tests.py).
with suppress(ImportError):
    from hypothesis import settings

    settings.register_profile("drafthouse", deadline=None)
    settings.load_profile("drafthouse")
