"""`python -m bench.router_overhead`: the router's CPU time per step at 1, 8, 32 and 128 sequences, without a model.

A real router, a real client and a shard without a model, each a process of its own. Its steps take no time, or what
`--step-ms` says, as a GPU's would. Steps/s is what the three reach together: an upper bound for any model behind this
router, or how much of such a GPU it keeps busy. Messages to clients go by the clock, so with longer steps there are
more of them in each.
"""

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from bench.byte_tokenizer import byte_tokenizer
from bench.client import Client
from bench.errors import told_to_user
from bench.fake_shard import MAX_BATCH_SIZE, SPECULATE
from bench.metrics import read_steps
from bench.processes import cpu_seconds, running, wait_until_healthy
from bench.prompts import Prompt, load_prompts
from bench.statistic import table
from launcher.readiness import free_ports

_HOST = "127.0.0.1"
_NEW_TOKENS = 1000
_BATCHES = (1, 8, 32, MAX_BATCH_SIZE)


@dataclass(frozen=True, slots=True)
class _Router:
    pid: int
    grpc_address: str
    metrics_url: str


@told_to_user()
def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.router_overhead", description=__doc__)
    parser.add_argument("--step-ms", type=float, default=0.0, help="what a step takes on the shard")
    parser.add_argument("--tokenizer", type=Path, help="a model's folder; without it a token is a byte")
    arguments = parser.parse_args()
    [prompt] = load_prompts(1)["chat"]
    with tempfile.TemporaryDirectory(prefix="drafthouse-bench-") as name, tempfile.TemporaryFile() as log:
        folder = Path(name)
        if arguments.tokenizer is None:
            _write_tokenizer(folder)
        port, grpc_port = free_ports(2)
        shard = [sys.executable, "-m", "bench.fake_shard", f"unix:{folder}/s-0", str(arguments.step_ms)]
        router = [
            sys.executable,
            "-m",
            "router",
            f"--model-path={arguments.tokenizer or folder}",
            "--model-id=none",
            "--num-shard=1",
        ]
        router += [f"--shard-uds-path={folder}/s", f"--run-dir={folder}", f"--port={port}", f"--grpc-port={grpc_port}"]
        with (
            running(shard, environ=os.environ, log=log),
            running(router, environ=os.environ, log=log) as process,
        ):
            wait_until_healthy("the router", process, port, log)
            address = _Router(process.pid, f"{_HOST}:{grpc_port}", f"http://{_HOST}:{port}/metrics")
            print(asyncio.run(_measure(address, prompt)))


def _write_tokenizer(folder: Path) -> None:
    """Every id of the fake shard has text; a chat template adds nothing."""
    byte_tokenizer().save(str(folder / "tokenizer.json"))
    template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))


async def _measure(router: _Router, prompt: Prompt) -> str:
    rows = []
    async with Client(router.grpc_address, max_new_tokens=_NEW_TOKENS) as client:
        await client.generate_together([prompt], speculate=0)
        for batch in _BATCHES:
            for speculate in (0, SPECULATE):
                rows.append(await _row(router, client, [prompt] * batch, speculate))
    header = ["sequences", "drafts", "steps", "router CPU ms/step", "us per sequence", "steps/s"]
    header += ["messages/step", "client CPU ms/step"]
    return table(header, rows)


async def _row(router: _Router, client: Client, prompts: list[Prompt], speculate: int) -> list[str]:
    steps, router_s = read_steps(router.metrics_url), cpu_seconds(router.pid)
    client_s, start_s = time.process_time(), time.perf_counter()
    samples = await client.generate_together(prompts, speculate=speculate)
    wall_s, client_s = time.perf_counter() - start_s, time.process_time() - client_s
    router_s = cpu_seconds(router.pid) - router_s
    num_steps = (read_steps(router.metrics_url) - steps).num
    return [
        str(len(prompts)),
        str(speculate),
        str(num_steps),
        f"{1e3 * router_s / num_steps:.2f}",
        f"{1e6 * router_s / num_steps / len(prompts):.0f}",
        f"{num_steps / wall_s:.0f}",
        f"{sum(len(sample.arrivals) for sample in samples) / num_steps:.1f}",
        f"{1e3 * client_s / num_steps:.2f}",
    ]


if __name__ == "__main__":
    main()
