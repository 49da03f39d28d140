"""What a benchmark says while it runs; on stdout there are only results."""

import sys


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
