"""What is run, in which order. Whoever is measured has the machine alone, and the systems take turns prompt by prompt,
so that a change of the machine meets all of them.
"""

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from bench.client import Client
from bench.errors import PeerError
from bench.metrics import NO_STEPS, Steps, read_steps
from bench.peers.process import PeerProcess
from bench.processes import cpu_seconds
from bench.prompts import Prompt
from bench.sample import Sample
from bench.server import Server
from bench.systems import System


@dataclass(frozen=True, slots=True)
class Turn:
    """One system's answers to prompts sent together. `wall_s`: from the first request to the last token.

    Turns of the same `place` followed each other directly, with the same prompts: ratios are formed within it. `limit`:
    decode steps per second that the memory allowed around it, if reading weights, keys and values were all. The
    rest is zero for peers; `router_cpu_s` and `client_cpu_s` are CPU time, not wall time.
    """

    place: int
    system: System
    workload: str
    batch: int
    samples: tuple[Sample, ...]
    wall_s: float
    limit: float = 0.0
    steps: Steps = NO_STEPS
    router_cpu_s: float = 0.0
    client_cpu_s: float = 0.0

    @property
    def tokens_per_s(self) -> float:
        return sum(sample.num_tokens for sample in self.samples) / self.wall_s

    @property
    def of_limit(self) -> float:
        """The decoding speed of one of its sequences over the limit."""
        gaps = [gap for sample in self.samples for gap in sample.inter_token_s()]
        return len(gaps) / sum(gaps) / self.limit


class Measurement:
    """Takes turns and keeps them in `turns`, in order. A peer that fails takes no more; `dropped` says why."""

    def __init__(
        self,
        server: Server,
        client: Client,
        *,
        ours: Sequence[System],
        peers: dict[System, PeerProcess],
        max_new_tokens: int,
        slow_turn_s: float,
        token_ids: dict[str, list[int]],
        read_limit: Callable[[float], float],
    ) -> None:
        """`read_limit` measures the limit at this moment, given how many tokens' keys and values a step reads."""
        self._server = server
        self._client = client
        self._peers = peers
        self._systems = [*ours, *peers]
        self._max_new_tokens = max_new_tokens
        self._slow_turn_s = slow_turn_s
        self._token_ids = token_ids
        self._read_limit = read_limit
        self._num_places = 0
        # The batch from which on a system is not asked any more.
        self._slow_from: dict[System, int] = {}
        self.turns: list[Turn] = []
        self.dropped: dict[System, str] = {}

    async def warm_up(self, prompts: Sequence[Prompt]) -> None:
        """One answer of each system to each prompt, not kept."""
        for prompt in prompts:
            for system in list(self._systems):
                await self._try(system, [prompt], place=0)

    async def one_at_a_time(self, prompts: Sequence[Prompt], *, shift: int) -> None:
        """Every system answers every prompt; who begins changes from prompt to prompt, and with `shift`."""
        for i, prompt in enumerate(prompts):
            await self._all([prompt], shift=i + shift)

    async def together(self, prompts: Sequence[Prompt], *, batch: int, shift: int) -> None:
        """`batch` requests at once, prompts repeated as needed."""
        await self._all(list(itertools.islice(itertools.cycle(prompts), batch)), shift=shift)

    def skipped(self) -> dict[System, int]:
        """Systems that were too slow, with the batch from which on they were not asked again."""
        return dict(self._slow_from)

    async def _all(self, prompts: list[Prompt], *, shift: int) -> None:
        self._num_places += 1
        asked = [
            s for s in self._systems if s.can_answer(len(prompts)) and len(prompts) < self._slow_from.get(s, 2**31)
        ]
        first = shift % len(asked)
        # Half of the answer is there on average.
        context = sum(len(self._token_ids[prompt.id]) + self._max_new_tokens / 2 for prompt in prompts)
        before = self._read_limit(context)
        for system in asked[first:] + asked[:first]:
            turn = await self._try(system, prompts, place=self._num_places)
            behind = self._read_limit(context)
            if turn is not None:
                # A shared machine's memory may change its speed within a turn.
                self.turns.append(replace(turn, limit=(before + behind) / 2))
                if not system.is_ours and len(prompts) > 1 and turn.wall_s > self._slow_turn_s:
                    self._slow_from[system] = len(prompts)
            before = behind

    async def _try(self, system: System, prompts: list[Prompt], *, place: int) -> Turn | None:
        """None from a peer that failed."""
        try:
            return (
                self._peers_turn(system, prompts, place)
                if system.peer
                else await self._our_turn(system, prompts, place)
            )
        except PeerError as error:
            self.dropped[system] = error.reason
            self._systems.remove(system)
            return None

    def _peers_turn(self, system: System, prompts: list[Prompt], place: int) -> Turn:
        token_ids = [self._token_ids[prompt.id] for prompt in prompts]
        samples = self._peers[system].answer(prompts, token_ids, max_new_tokens=self._max_new_tokens)
        # By its own clock, as the waits for tokens are; pipes and JSON are not the peer's.
        wall_s = max(sample.total_s for sample in samples)
        return Turn(place, system, prompts[0].workload, len(prompts), tuple(samples), wall_s)

    async def _our_turn(self, system: System, prompts: list[Prompt], place: int) -> Turn:
        steps, router_s = read_steps(self._server.metrics_url), cpu_seconds(self._server.router_pid)
        client_s, start_s = time.process_time(), time.perf_counter()
        samples = tuple(await self._client.generate_together(prompts, speculate=system.speculate))
        wall_s, client_s = time.perf_counter() - start_s, time.process_time() - client_s
        router_s = cpu_seconds(self._server.router_pid) - router_s
        steps = read_steps(self._server.metrics_url) - steps
        return Turn(
            place,
            system,
            prompts[0].workload,
            len(prompts),
            samples,
            wall_s,
            steps=steps,
            router_cpu_s=router_s,
            client_cpu_s=client_s,
        )
