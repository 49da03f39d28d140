"""Entry of a shard process: flags, logs, one rank, its server."""

import asyncio
import contextlib
import logging
import os
import sys
from functools import partial
from pathlib import Path
from typing import NoReturn

import torch

from shard.checkpoint import CheckpointError
from shard.config import ConfigError, ShardConfig, parse_args
from shard.device_thread import DeviceThread, leave
from shard.logs import configure
from shard.process import die_with_parent, write_fatal
from shard.rank import build_rank
from shard.server import ShardServicer, start_server
from shard.step_order import StepOrder

log = logging.getLogger("shard")


def main(argv: list[str]) -> NoReturn:
    """Ends the process by itself, without Python's own clean-up: gloo's threads let go of tensors when they please, and
    one that does so while the interpreter goes away aborts."""
    config = parse_args(argv)
    configure(config.log_level, config.json_output, rank=int(os.environ.get("RANK", "0")))
    try:
        asyncio.run(serve(config))
        leave("its server ended")
    except (ConfigError, CheckpointError, ValueError) as error:
        _end_for_good(config, str(error) or repr(error))
    except torch.OutOfMemoryError as error:
        # While the rank was built: a step that fails ends the process elsewhere.
        log.error("%s", error)
        _end_for_good(
            config, "the model does not fit the GPU; add shards (--num-shard), or keep it in 8 bits (--quantize)"
        )
    except Exception as error:
        log.exception("not foreseen")
        leave(repr(error))


def _end_for_good(config: ShardConfig, message: str) -> NoReturn:
    """With what no restart can mend."""
    write_fatal(config.run_dir, message)
    print(f"shard: {message}", file=sys.stderr, flush=True)
    os._exit(1)


async def serve(config: ShardConfig) -> None:
    config.validate()
    device = DeviceThread()
    rank = await device.submit(partial(build_rank, config))
    steps = StepOrder(device, rank.runner.launch)
    servicer = ShardServicer(info=rank.info, steps=steps, warm_up=partial(rank.warm_up, on_step=device.begin_step))
    path = Path(f"{config.uds_path}-{rank.group.rank}")
    # A predecessor that was killed leaves its socket behind.
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
    server = await start_server(servicer, f"unix:{path}")
    log.info("listening on %s", path)
    await asyncio.gather(
        server.wait_for_termination(),
        device.watch(config.collective_timeout),
        steps.watch(config.collective_timeout),
    )


if __name__ == "__main__":
    die_with_parent(os.getppid())
    main(sys.argv[1:])
