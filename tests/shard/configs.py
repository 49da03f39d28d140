"""The configuration of a rank that nobody calls, so that its sockets and its folder are unused."""

from pathlib import Path

from shard.config import ShardConfig, parse_args


def shard_config(model: Path | str, *flags: str) -> ShardConfig:
    return parse_args([f"--model-path={model}", "--uds-path=unused", "--run-dir=unused", "--threads=1", *flags])
