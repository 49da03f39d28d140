"""Takes the runs: for each kind of text and concurrency the same prompts with and without speculation, in turns.

A run has so many answers under way from its begin to its end, one after another for each of so many users: a batch that
is answered once would be as slow as its slowest answer, whatever the others gain. The prefix cache is on, as users have
it, and full before a point begins: what is measured is decoding.
"""

import itertools
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from bench.client import Client
from bench.never_slower.config import NeverSlowerConfig
from bench.never_slower.report import AUTO, OFF, Points, Runs, fixed_name, is_settled, pairs_line
from bench.prompts import RANDOM, WORKLOADS, Prompt, load_prompts, random_prompts
from bench.say import say
from bench.server import launched

_PROMPTS = 8
# Answers of each user in a run.
_ROUNDS = 2
_WARM_UP_TOKENS = 8


async def measure(config: NeverSlowerConfig) -> Points:
    """Speculation as the server chooses it, against none, beside servers that always check K drafts if these are asked
    for; all servers run, one at a time is asked."""
    flags = [f"--speculate={config.speculate}"] if config.speculate is not None else []
    async with AsyncExitStack() as stack:
        auto = await stack.enter_async_context(_client(config, flags))
        clients = {OFF: auto, AUTO: auto}
        for k in config.fixed:
            clients[fixed_name(k)] = await stack.enter_async_context(_client(config, _exactly(k)))
        prompts = await _prompts(auto, config)
        points: Points = {}
        for workload, concurrency in itertools.product(config.workloads, config.concurrency):
            points[workload, concurrency] = await _point(config, clients, prompts[workload], concurrency)
            say(pairs_line(points, workload, concurrency))
        return points


async def _point(
    config: NeverSlowerConfig, clients: dict[str, Client], prompts: list[Prompt], concurrency: int
) -> dict[str, Runs]:
    """By way, one value for each pair (or round, where there are more than two ways)."""
    new_tokens = config.num_new_tokens(concurrency)
    ways = list(clients)
    for client in dict.fromkeys(clients.values()):
        await client.generate_together(prompts, speculate=None, max_new_tokens=_WARM_UP_TOKENS)
    runs = {way: Runs() for way in ways}
    for number in range(config.most_pairs):
        if number and number % config.pairs == 0 and is_settled(runs):
            break
        asked = list(itertools.islice(itertools.cycle(prompts), number, number + _ROUNDS * concurrency))
        first = number % len(ways)
        for way in ways[first:] + ways[:first]:
            seen = await clients[way].keep_busy(
                asked, at_once=concurrency, speculate=0 if way == OFF else None, max_new_tokens=new_tokens
            )
            runs[way].speeds.append(seen.num_tokens / seen.seconds)
            runs[way].drafts_per_step.append(seen.num_drafted / seen.num_steps)
    return runs


def _exactly(k: int) -> list[str]:
    """Flags of a server that checks `k` drafts in every step: no draft is too unlikely, and no tree holds more."""
    return [f"--speculate={k}", f"--tree-size={k}", "--draft-min-probability=0"]


async def _prompts(client: Client, config: NeverSlowerConfig) -> dict[str, list[Prompt]]:
    vocab_size = (await client.model_info()).vocab_size
    texts = load_prompts(_PROMPTS)
    everything = {**{name: texts[name] for name in WORKLOADS}, RANDOM: random_prompts(_PROMPTS, vocab_size=vocab_size)}
    return {name: everything[name] for name in config.workloads}


@asynccontextmanager
async def _client(config: NeverSlowerConfig, flags: list[str]) -> AsyncIterator[Client]:
    flags = [*config.server_flags, *flags]
    say(f"starting the launcher with {' '.join(flags)}")
    with launched(model_id=config.model_id, threads=config.threads, flags=flags, prefix_caching=True) as server:
        async with Client(server.grpc_address, max_new_tokens=1) as client:
            yield client
