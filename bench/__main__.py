"""`python -m bench`: starts the service and transformers, measures both, prints the report."""

import asyncio
import sys

import grpc

from bench.bandwidth import measured_bandwidth
from bench.client import Client
from bench.config import BenchConfig, parse_args
from bench.errors import BenchError
from bench.machine import Machine, describe_machine
from bench.measure import Measurement
from bench.prompts import Prompt, load_prompts
from bench.report import report
from bench.server import launched
from bench.transformers_peer import transformers_peer
from bench.weights import bytes_read_per_step
from launcher.errors import LaunchError
from launcher.logs import LogWriter
from launcher.resolve import ModelRequest, resolve

_DTYPE = "bfloat16"


def main() -> None:
    config = parse_args(sys.argv[1:])
    try:
        asyncio.run(_run(config))
    except (BenchError, LaunchError) as error:
        sys.exit(f"bench: {error}")
    except grpc.aio.AioRpcError as error:
        sys.exit(f"bench: the service failed a request: {error.details()} ({error.code().name})")


async def _run(config: BenchConfig) -> None:
    machine = describe_machine()
    # The folder the launcher will serve, for transformers; a model that must be fetched or converted is so here.
    request = ModelRequest(config.model_id, revision=None, dtype=_DTYPE, hub_cache=None)
    folder = resolve(request, LogWriter(level="info", json_output=False, stream=sys.stderr)).path
    weights_bytes = bytes_read_per_step(folder, _DTYPE)
    bandwidths = [measured_bandwidth(weights_bytes, config.threads)]
    prompts = load_prompts(config.prompts_per_workload)
    with (
        launched(model_id=config.model_id, threads=config.threads, flags=[f"--speculate={config.speculate}"]) as server,
        transformers_peer(folder, dtype=_DTYPE, threads=config.threads, max_new_tokens=config.max_new_tokens) as peer,
    ):
        async with Client(server.grpc_address, max_new_tokens=config.max_new_tokens) as client:
            token_ids = {p.id: await client.token_ids(p) for group in prompts.values() for p in group}
            measurement = Measurement(server, client, peer, speculate=config.speculate, token_ids=token_ids)
            info = await client.model_info()
            _say(f"service ready in {server.start_s:.1f} s, warming up")
            await measurement.warm_up([group[0] for group in prompts.values()])
            for number in range(config.rounds):
                await _round(measurement, prompts, config, number)
                bandwidths.append(measured_bandwidth(weights_bytes, config.threads))
    text = report(
        config,
        machine=Machine(machine, bandwidth=max(bandwidths), weights_bytes=weights_bytes),
        info=info,
        turns=measurement.turns,
        start_s=server.start_s,
    )
    print(text)
    if config.output is not None:
        config.output.write_text(text, encoding="utf-8")


async def _round(measurement: Measurement, prompts: dict[str, list[Prompt]], config: BenchConfig, number: int) -> None:
    for workload, group in prompts.items():
        _say(f"round {number + 1} of {config.rounds}: {workload}, one at a time")
        await measurement.one_at_a_time(group, shift=number)
        for batch in config.concurrency:
            _say(f"round {number + 1} of {config.rounds}: {workload}, {batch} at once")
            await measurement.together(group, batch=batch, shift=number)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
