"""`launcher …` or `python -m launcher …`: flags and environment → one configuration → resolve the model, run."""

import os
import signal
import sys
from types import FrameType

import click

from launcher.config import ConfigError, LauncherConfig, settled
from launcher.errors import LaunchError
from launcher.launch import Programs, launch
from launcher.logs import LogWriter
from launcher.machine import inspect_machine
from launcher.options import config_options, from_environment

# What cleaning up may take after a signal: a download's threads would be waited for to the end of their files.
_CLEAN_UP_S = 5.0


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@config_options
def main(**flags: object) -> None:
    """Serve a language model: splits it over shards, starts the router, watches both.

    SIGTERM and Ctrl-C finish open requests first; a second one hurries.
    """
    # Until there are children, which are stopped in order: a first process of a container would not hear them at all,
    # another would leave a part of a model in the cache.
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _end)
    config = LauncherConfig(**flags)  # type: ignore[arg-type]
    log = LogWriter(level=config.log_level, json_output=config.json_output)
    # Some names are everybody's: PORT, REVISION.
    if variables := from_environment(click.get_current_context()):
        log.info(f"from the environment: {', '.join(variables)}")
    try:
        machine = inspect_machine(os.environ)
        config = settled(config, machine)
        sys.exit(launch(config, machine, os.environ, log, Programs.for_machine(machine)))
    except ConfigError as error:
        raise click.UsageError(str(error)) from error
    except (LaunchError, OSError) as error:
        log.error(str(error))
        sys.exit(1)


def _end(number: int, _frame: FrameType | None) -> None:
    # `timeout` signals a process and then its group, in the middle of what the first one has it clean up.
    for again in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(again, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, lambda *_: os._exit(128 + number))
    signal.setitimer(signal.ITIMER_REAL, _CLEAN_UP_S)
    sys.exit(128 + number)


if __name__ == "__main__":
    main(prog_name="launcher")
