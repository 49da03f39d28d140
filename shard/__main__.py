"""Entry of a shard process: flags, logs, one rank, its server."""

import asyncio
import contextlib
import logging
import os
import signal
import sys
from pathlib import Path

from shard.checkpoint import CheckpointError
from shard.config import ConfigError, ShardConfig, parse_args
from shard.device_thread import DeviceThread
from shard.logs import configure
from shard.process import die_with_parent, write_fatal
from shard.rank import Rank, build_rank
from shard.server import ShardServicer, start_server
from shard.warmup import warm_up

log = logging.getLogger("shard")


def main() -> None:
    die_with_parent()
    config = parse_args()
    configure(config.log_level, config.json_output, rank=int(os.environ.get("RANK", "0")))
    try:
        config.validate()
        rank = build_rank(config)
    except (ConfigError, CheckpointError, ValueError) as error:
        write_fatal(config.run_dir, str(error))
        sys.exit(f"shard: {error}")
    asyncio.run(serve(config, rank))


async def serve(config: ShardConfig, rank: Rank) -> None:
    # At any moment: a rank owes nobody anything, the router holds every token. Not set before the loop runs, because a
    # handler in Python would wait for the library call that joins the group; without one the process just ends.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    device = DeviceThread(rank.runner.execute, timeout_s=config.collective_timeout)
    servicer = ShardServicer(info=rank.info, device=device, warm_up=lambda: warm_up(rank.runner, config))
    path = Path(f"{config.uds_path}-{rank.group.rank}")
    # A predecessor that was killed leaves its socket behind.
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
    server = await start_server(servicer, f"unix:{path}")
    log.info("listening on %s", path)
    await server.wait_for_termination()


if __name__ == "__main__":
    main()
