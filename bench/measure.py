"""What is run, in which order. Whoever is measured has the machine alone, and the systems take turns prompt by prompt,
so that a change of the machine meets all of them.
"""

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from bench.client import Client
from bench.metrics import Steps, read_steps
from bench.processes import cpu_seconds
from bench.prompts import Prompt
from bench.sample import Sample
from bench.server import Server
from bench.transformers_peer import TransformersPeer

OFF, ON, PEER = "off", "on", "transformers"

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Turn:
    """One system's answers to prompts sent together. `wall_s`: from the first request to the last token.

    The rest is zero for transformers. `router_cpu_s` and `client_cpu_s` are CPU time, not wall time.
    """

    system: str
    workload: str
    batch: int
    samples: tuple[Sample, ...]
    wall_s: float
    steps: Steps = field(default_factory=lambda: Steps(0, 0.0, 0, 0.0))
    router_cpu_s: float = 0.0
    client_cpu_s: float = 0.0


class Measurement:
    """Takes turns and keeps them in `turns`, in order."""

    def __init__(
        self, server: Server, client: Client, peer: TransformersPeer, *, speculate: int, token_ids: dict[str, list[int]]
    ) -> None:
        self._server = server
        self._client = client
        self._peer = peer
        self._speculate = speculate
        self._token_ids = token_ids
        self.turns: list[Turn] = []

    async def warm_up(self, prompts: list[Prompt]) -> None:
        """One answer of each system to each prompt, not kept."""
        for prompt in prompts:
            for system in (OFF, ON, PEER):
                await self._turn(system, [prompt])

    async def one_at_a_time(self, prompts: list[Prompt], *, shift: int) -> None:
        """Every system answers every prompt; who begins changes from prompt to prompt, and with `shift`."""
        for i, prompt in enumerate(prompts):
            for k in range(3):
                system = (OFF, PEER, ON)[(i + k + shift) % 3]
                self.turns.append(await self._turn(system, [prompt]))

    async def together(self, prompts: list[Prompt], *, batch: int, shift: int) -> None:
        """`batch` requests at once, prompts repeated as needed, without and with speculation; not transformers."""
        batch_prompts = list(itertools.islice(itertools.cycle(prompts), batch))
        for k in range(2):
            self.turns.append(await self._turn((OFF, ON)[(k + shift) % 2], batch_prompts))

    async def _turn(self, system: str, prompts: list[Prompt]) -> Turn:
        workload, batch = prompts[0].workload, len(prompts)
        if system == PEER:
            sample = self._peer.generate(prompts[0], self._token_ids[prompts[0].id])
            return Turn(system, workload, batch, (sample,), sample.total_s)
        steps, router_s = read_steps(self._server.metrics_url), cpu_seconds(self._server.router_pid)
        client_s, start_s = time.process_time(), time.perf_counter()
        speculate = self._speculate if system == ON else 0
        samples = tuple(await self._client.generate_together(prompts, speculate=speculate))
        wall_s, client_s = time.perf_counter() - start_s, time.process_time() - client_s
        router_s = cpu_seconds(self._server.router_pid) - router_s
        steps = read_steps(self._server.metrics_url) - steps
        return Turn(system, workload, batch, samples, wall_s, steps, router_s, client_s)
