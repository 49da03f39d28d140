"""Makes click options from the fields of LauncherConfig. Knows no flag by name."""

import re
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import click

from launcher.config import LauncherConfig, flag_name

ENV_PREFIX = "DRAFTHOUSE_"
# What Kubernetes sets in every container for a Service: one called drafthouse has DRAFTHOUSE_PORT=tcp://10.96.0.7:3001.
_SERVICE_LINK = re.compile(r"(tcp|udp|sctp)://\S+:\d+")


class _Option(click.Option):
    """An option whose variable may be a service link, which nobody has set for it."""

    def resolve_envvar_value(self, ctx: click.Context) -> str | None:
        value = super().resolve_envvar_value(ctx)
        return None if value and _SERVICE_LINK.fullmatch(value) else value


def env_name(field_name: str) -> str:
    return ENV_PREFIX + field_name.upper()


def config_options(command: Callable[..., None]) -> Callable[..., None]:
    """Decorator: gives `command` one option per field, in the order of the fields."""
    for entry in reversed(fields(LauncherConfig)):
        kind = entry.metadata["kind"]
        settings: dict[str, Any] = {"is_flag": True} if kind is bool else {"type": kind}
        if entry.default is not None:
            settings["show_default"] = True
        command = click.option(
            flag_name(entry.name),
            entry.name,
            cls=_Option,
            default=entry.default,
            envvar=env_name(entry.name),
            show_envvar=True,
            help=entry.metadata["help"],
            **settings,
        )(command)
    return command
