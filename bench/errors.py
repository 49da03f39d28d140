"""What stops a benchmark or takes a peer out of it, with a message for the user."""


class BenchError(Exception):
    """The message says what failed and what to do."""


class PeerError(Exception):
    """One peer cannot take part; the rest of the run goes on without it, and the report says why."""

    def __init__(self, peer: str, reason: str) -> None:
        super().__init__(f"{peer}: {reason}")
        self.peer = peer
        self.reason = reason
