"""`launcher …` or `python -m launcher …`: flags and environment → one configuration → resolve the model, run."""

import os
import sys

import click

from launcher.config import ConfigError, LauncherConfig, settled
from launcher.errors import LaunchError
from launcher.launch import Programs, launch
from launcher.logs import LogWriter
from launcher.machine import inspect_machine
from launcher.options import config_options, from_environment


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@config_options
def main(**flags: object) -> None:
    """Serve a language model: splits it over shards, starts the router, watches both.

    SIGTERM and Ctrl-C finish open requests first; a second one hurries.
    """
    config = LauncherConfig(**flags)  # type: ignore[arg-type]
    log = LogWriter(level=config.log_level, json_output=config.json_output)
    # Some names are everybody's: PORT, REVISION.
    if variables := from_environment(click.get_current_context()):
        log.info(f"from the environment: {', '.join(variables)}")
    try:
        machine = inspect_machine(os.environ)
        config = settled(config, machine)
        sys.exit(launch(config, os.environ, log, Programs.for_machine(machine)))
    except ConfigError as error:
        raise click.UsageError(str(error)) from error
    except (LaunchError, OSError) as error:
        log.error(str(error))
        sys.exit(1)


if __name__ == "__main__":
    main(prog_name="launcher")
