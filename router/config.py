"""The router's configuration: one frozen object, made from its flags. The launcher passes them."""

import argparse
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class RouterConfig:
    model_path: Path
    model_id: str
    revision: str
    num_shard: int
    shard_uds_path: str
    run_dir: Path
    hostname: str
    port: int
    grpc_port: int
    max_concurrent_requests: int
    max_input_tokens: int | None
    max_stop_sequences: int
    payload_limit: int
    graceful_termination_timeout: float
    step_timeout: float
    disable_prefix_caching: bool
    json_output: bool
    log_level: str

    @property
    def shard_addresses(self) -> tuple[str, ...]:
        return tuple(f"unix:{self.shard_uds_path}-{rank}" for rank in range(self.num_shard))


def parse_args(argv: list[str] | None = None) -> RouterConfig:
    parser = argparse.ArgumentParser(prog="router", description="Batches requests and calls the shards.")
    parser.add_argument("--model-path", type=Path, required=True, help="folder with tokenizer.json and its config")
    parser.add_argument("--model-id", required=True, help="the name that clients see")
    parser.add_argument("--revision", default="")
    parser.add_argument("--num-shard", type=int, required=True, help="ranks of the shard group")
    parser.add_argument("--shard-uds-path", required=True, help="rank r listens on the Unix socket SHARD_UDS_PATH-r")
    parser.add_argument("--run-dir", type=Path, required=True, help="where an error that no restart mends is written")
    parser.add_argument("--hostname", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=3000, help="HTTP: /health and /metrics")
    parser.add_argument("--grpc-port", type=int, default=3001)
    parser.add_argument("--max-concurrent-requests", type=int, default=128, help="more are turned away")
    parser.add_argument("--max-input-tokens", type=int, default=None)
    parser.add_argument("--max-stop-sequences", type=int, default=4)
    parser.add_argument("--payload-limit", type=int, default=2_000_000, help="bytes of a request")
    parser.add_argument("--graceful-termination-timeout", type=float, default=90.0, help="seconds")
    parser.add_argument("--step-timeout", type=float, default=60.0, help="seconds before a silent rank is given up")
    parser.add_argument("--disable-prefix-caching", action="store_true")
    parser.add_argument("--json-output", action="store_true")
    parser.add_argument("--log-level", default="info")
    return RouterConfig(**vars(parser.parse_args(argv)))
