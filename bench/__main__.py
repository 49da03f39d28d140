"""`python -m bench`: starts the service and its peers, measures all in turns, prints and writes the report."""

import asyncio
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

from bench.bandwidth import bandwidth_meter
from bench.client import Client
from bench.config import BenchConfig, child_environ, parse_args
from bench.errors import told_to_user
from bench.field import install_all, take_field
from bench.machine import Machine, describe_machine
from bench.measure import Measurement
from bench.metrics import Drafts, read_drafts
from bench.never_slower.config import NeverSlowerConfig
from bench.never_slower.config import parse_args as parse_never_slower
from bench.never_slower.report import Points
from bench.never_slower.report import report as never_slower_report
from bench.never_slower.run import measure as measure_never_slower
from bench.plots import PlotData, draw
from bench.prompts import Prompt, load_prompts
from bench.report import Run, report
from bench.results_file import write_samples, write_section
from bench.say import say
from bench.server import launched
from bench.systems import ours
from bench.weights import bytes_read_per_step, kv_bytes_per_token
from launcher.default_model import default_gguf
from launcher.gguf_cache import is_gguf
from launcher.logs import LogWriter
from launcher.resolve import ModelRequest, resolve

_DTYPE = "bfloat16"


@told_to_user()
def main() -> None:
    asyncio.run(_run(parse_args(sys.argv[1:])))


async def _run(config: BenchConfig) -> None:
    description = describe_machine()
    absent = install_all(config)
    run, drafts = await _compare(config, description, absent)
    # Whatever comes after it, this is not lost.
    print(report(run), flush=True)
    points: Points = {}
    never_slower = ""
    if config.never_slower_pairs:
        settings = _never_slower(config)
        points = await measure_never_slower(settings)
        never_slower = never_slower_report(points, settings)
        print(never_slower)
    if config.output is not None:
        folder = config.output.parent / "plots"
        links = draw(PlotData(run.turns, drafts, points), folder)
        links += _draw_tree_cost(config, folder / "tree_cost.svg") if links else []
        write_section(config.output, report(run, links, never_slower))
        write_samples(config.output.with_suffix(".samples.json"), run.turns, points)
        say(f"written to {config.output}")


async def _compare(config: BenchConfig, description: str, absent: dict[str, str]) -> tuple[Run, Drafts]:
    """Ours and the peers, in turns."""
    log = LogWriter(level="info", json_output=False, stream=sys.stderr)
    # The folder the launcher will serve; a model that must be fetched or converted is so here.
    folder = resolve(ModelRequest(config.model_id, revision=None, dtype=_DTYPE, hub_cache=None), log).path
    weights_bytes = bytes_read_per_step(folder, _DTYPE, is_int8=config.quantize == "int8")
    kv_bytes = kv_bytes_per_token(folder, _DTYPE)
    prompts = load_prompts(config.prompts_per_workload)
    systems = ours()
    flags = [f"--speculate={config.speculate}"]
    if config.quantize is not None:
        flags.append(f"--quantize={config.quantize}")
    with ExitStack() as stack:
        field = take_field(config, folder=folder, gguf=_gguf(config, log), absent=absent, stack=stack)
        bandwidth = stack.enter_context(bandwidth_meter(weights_bytes, config.threads))
        server = stack.enter_context(launched(model_id=config.model_id, threads=config.threads, flags=flags))
        async with Client(server.grpc_address, max_new_tokens=config.max_new_tokens) as client:
            token_ids = {p.id: await client.token_ids(p) for group in prompts.values() for p in group}
            measurement = Measurement(
                server,
                client,
                ours=systems,
                peers=field.processes,
                max_new_tokens=config.max_new_tokens,
                slow_turn_s=config.slow_turn_s,
                token_ids=token_ids,
                read_limit=lambda context: bandwidth() / (weights_bytes + kv_bytes * context),
            )
            info = await client.model_info()
            say(f"service ready in {server.start_s:.1f} s, warming up")
            await measurement.warm_up([group[0] for group in prompts.values()][: 1 if config.rounds == 1 else None])
            notes = field.quieten()
            for number in range(config.rounds):
                await _round(measurement, prompts, config, number)
            drafts = read_drafts(server.metrics_url)
    notes += [
        f"{s.name} took over {config.slow_turn_s:.0f} s for {n}: not asked again from there on"
        for s, n in measurement.skipped().items()
    ]
    run = Run(
        config,
        machine=Machine(description, weights_bytes, kv_bytes),
        info=info,
        start_s=server.start_s,
        turns=measurement.turns,
        peers={system: peer.about for system, peer in field.processes.items()},
        absent=field.absent | {system.name: reason for system, reason in measurement.dropped.items()},
        notes=notes,
    )
    return run, drafts


def _draw_tree_cost(config: BenchConfig, path: Path) -> list[str]:
    """What rows of drafts cost, by bench.tree_cost in a process of its own: it needs torch, and torch's threads."""
    command = [sys.executable, "-m", "bench.tree_cost", f"--dtype={_DTYPE}", f"--threads={config.threads}"]
    command += [f"--plot={path}", *([f"--model-id={config.model_id}"] if config.model_id is not None else [])]
    done = subprocess.run(command, env=child_environ(config.threads), capture_output=True, text=True, check=False)
    if done.returncode != 0:
        say(f"no picture of what rows cost: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
        return []
    return [f"![What checking drafts costs]({path.parent.name}/{path.name})"]


def _gguf(config: BenchConfig, log: LogWriter) -> Path | None:
    """What the served weights were made of, for peers that read nothing else."""
    if config.model_id is None:
        return default_gguf(log)
    file = Path(config.model_id).expanduser()
    return file if file.is_file() and is_gguf(file) else None


def _never_slower(config: BenchConfig) -> NeverSlowerConfig:
    """Of the same model, with the model's own drafts; everything at its default."""
    flags = [f"--threads={config.threads}", f"--pairs={config.never_slower_pairs}"]
    return parse_never_slower(flags if config.model_id is None else [*flags, f"--model-id={config.model_id}"])


async def _round(measurement: Measurement, prompts: dict[str, list[Prompt]], config: BenchConfig, number: int) -> None:
    for workload, group in prompts.items():
        say(f"round {number + 1} of {config.rounds}: {workload}, one at a time")
        await measurement.one_at_a_time(group, shift=number)
        for batch in config.concurrency:
            say(f"round {number + 1} of {config.rounds}: {workload}, {batch} at once")
            await measurement.together(group, batch=batch, shift=number)


if __name__ == "__main__":
    main()
