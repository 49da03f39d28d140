"""What stops a benchmark, with a message for the user."""


class BenchError(Exception):
    """The message says what failed and what to do."""
