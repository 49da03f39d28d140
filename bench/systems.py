"""Who is measured: the service without and with speculation, and each peer without and with its own. Pure."""

from dataclasses import dataclass

from bench.peers.catalogue import Peer


@dataclass(frozen=True, slots=True)
class System:
    """`peer` is None for the service itself. `speculate`: drafts at most, 0 without, None as the server was started.
    `max_batch`: None is any."""

    name: str
    peer: str | None
    speculate: int | None
    max_batch: int | None = None

    @property
    def is_ours(self) -> bool:
        return self.peer is None

    @property
    def speculates(self) -> bool:
        return self.speculate != 0

    def can_answer(self, batch: int) -> bool:
        return self.max_batch is None or batch <= self.max_batch


def ours() -> tuple[System, System]:
    return System("drafthouse", None, 0), System("drafthouse, speculation", None, None)


def of_peer(peer: Peer, lookup: int) -> tuple[System, System]:
    """Without speculation, and with its prompt lookup of `lookup` tokens."""
    most = None if peer.batched_drafts else 1
    return System(peer.name, peer.name, 0), System(f"{peer.name}, lookup {lookup}", peer.name, lookup, most)
