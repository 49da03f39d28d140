"""Who takes the field: every peer's environment, model and processes, and the reasons of those that are missing."""

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from bench.config import BenchConfig, peer_environ
from bench.errors import PeerError
from bench.peers.catalogue import PEERS, Peer
from bench.peers.environment import install, is_installed, python_of
from bench.peers.model import prepared_model, quantize_flags
from bench.peers.process import PeerProcess, peer_process
from bench.say import say
from bench.systems import System, of_peer

_IDLE_SECONDS = 0.5


@dataclass(slots=True)
class Field:
    """`absent`: why a peer, or one of its ways, takes no part."""

    processes: dict[System, PeerProcess] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)

    def quieten(self) -> list[str]:
        """What is to be said of peers that do not rest when idle; they are stopped between their turns from now on."""
        shares = {system: peer.idle_share(_IDLE_SECONDS) for system, peer in self.processes.items()}
        return [
            f"{system.name} takes {100 * shares[system]:.0f} % of a core when idle: stopped while others are measured"
            for system, peer in self.processes.items()
            if peer.is_stopped_between_turns
        ]


def install_all(config: BenchConfig) -> dict[str, str]:
    """Makes the environments that are missing, if that is allowed. Returns why a peer has none, by its name."""
    absent = {}
    for peer in _asked(config):
        try:
            if not config.may_install and not is_installed(peer):
                raise PeerError(peer.name, "not installed; the full `make bench` installs it")
            install(peer)
        except PeerError as error:
            say(f"{error}; going on without it")
            absent[peer.name] = error.reason
    return absent


def take_field(
    config: BenchConfig, *, folder: Path, gguf: Path | None, absent: dict[str, str], stack: ExitStack
) -> Field:
    """Starts two processes of each installed peer, without and with lookup; `stack` ends them."""
    found = Field(absent=dict(absent))
    for peer in _asked(config):
        if peer.name in absent:
            continue
        try:
            model = prepared_model(peer, folder=folder, gguf=gguf, quantize=config.quantize, threads=config.threads)
        except PeerError as error:
            say(f"{error}; going on without it")
            found.absent[peer.name] = error.reason
            continue
        for system in of_peer(peer, config.lookup):
            say(f"starting {system.name}")
            command = [str(python_of(peer)), str(peer.script), f"--model={model}"]
            command += [
                f"--threads={config.threads}",
                f"--speculate={system.speculate}",
                *quantize_flags(config.quantize),
            ]
            environ = peer_environ(config.threads, peer.run_environ)
            try:
                found.processes[system] = stack.enter_context(peer_process(system.name, command, environ))
            except PeerError as error:
                say(f"{error}; going on without it")
                found.absent[system.name] = error.reason
    return found


def _asked(config: BenchConfig) -> Iterable[Peer]:
    return (PEERS[name] for name in config.peers)
