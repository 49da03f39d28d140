"""Entry of the router process: flags, logs, one server."""

import asyncio
import logging
import os
import resource
import sys
from pathlib import Path

from router.config import RouterConfig, parse_args
from router.logs import configure
from router.server import Server

log = logging.getLogger("router")


def main() -> None:
    config = parse_args()
    configure(config.log_level, config.json_output)
    # Each connection takes one, and many systems let a process have 1024 if it does not ask for more.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    failed = False
    try:
        asyncio.run(_serve(config))
    except Exception:
        log.exception("not foreseen")
        failed = True
    # What still works on a long message of a client that is gone is not waited for.
    os._exit(failed)


async def _serve(config: RouterConfig) -> None:
    # The servers belong to the running loop, so they are made in it.
    try:
        server = Server(config)
        await server.start()
    except (OSError, ValueError) as error:
        # A taken port, a folder without tokenizer: a restart would meet it again.
        write_fatal(config.run_dir, str(error) or repr(error))
        sys.exit(f"router: {error}")
    await server.serve()


def write_fatal(run_dir: Path, message: str) -> None:
    """Tells the launcher that restarting is of no use."""
    temporary = run_dir / f".fatal-{os.getpid()}"
    # A path's bytes that are no text must not cost the message.
    temporary.write_text(message, encoding="utf-8", errors="backslashreplace")
    temporary.replace(run_dir / "fatal")


if __name__ == "__main__":
    main()
