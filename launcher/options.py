"""Makes click options from the fields of LauncherConfig, each with its variables. Knows no flag by name."""

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import Field, fields
from typing import Any

import click
from click.core import ParameterSource

from launcher.config import LauncherConfig, flag_name

_PREFIX = "DRAFTHOUSE_"
# What Kubernetes sets in every container for a Service: one called drafthouse has DRAFTHOUSE_PORT=tcp://10.96.0.7:3001.
_SERVICE_LINK = re.compile(r"(tcp|udp|sctp)://\S+:\d+")


def env_names(entry: Field[Any]) -> list[str]:
    """Of a field of LauncherConfig: our variable, which comes first, and that of text-generation-inference."""
    name = entry.name.upper()
    return [_PREFIX + name, *([name] if entry.metadata["tgi"] else [])]


def without_variables(environ: Mapping[str, str]) -> dict[str, str]:
    """`environ` for processes that are to have no flag from it."""
    ours = {name for entry in fields(LauncherConfig) for name in env_names(entry)}
    return {name: value for name, value in environ.items() if name not in ours and not name.startswith(_PREFIX)}


def from_environment(ctx: click.Context) -> list[str]:
    """NAME=VALUE of each variable that became a flag."""
    options = [option for option in ctx.command.params if isinstance(option, _Option)]
    names = [option.variable for option in options if option.is_from_environment(ctx)]
    return [f"{name}={os.environ[name]}" for name in names if name]


class _Option(click.Option):
    """An option that knows which of its variables counts, and passes over service links, which nobody set."""

    @property
    def variable(self) -> str | None:
        for name in self.envvar or ():
            value = os.environ.get(name)
            if value and not _SERVICE_LINK.fullmatch(value):
                return name
        return None

    def is_from_environment(self, ctx: click.Context) -> bool:
        return self.name is not None and ctx.get_parameter_source(self.name) == ParameterSource.ENVIRONMENT

    def resolve_envvar_value(self, ctx: click.Context) -> str | None:
        return os.environ[self.variable] if self.variable else None

    def get_error_hint(self, ctx: click.Context | None) -> str:
        flag = f"'{self.opts[0]}'"
        return f"{flag} (from {self.variable})" if ctx is not None and self.is_from_environment(ctx) else flag


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
            envvar=env_names(entry),
            show_envvar=True,
            help=entry.metadata["help"],
            **settings,
        )(command)
    return command
