"""The options of the commands, made from the schemas, and the few that only a command has."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from ech_workers.options.client import CLIENT
from ech_workers.options.load import CLIENT_PREFIX, SERVER_PREFIX
from ech_workers.options.reference import CLIENT_ORDER, SERVER_ORDER, metavar
from ech_workers.options.schema import Option, Schema, options_of, parse
from ech_workers.options.server import SERVER
from ech_workers.options.sources import Given, Layer

__all__ = [
    "DEMO_NAMES",
    "DEMO_PREFIX",
    "LOG_NAMES",
    "REACH_NAMES",
    "SECONDS",
    "client_options",
    "config_option",
    "demo_options",
    "given",
    "reach_options",
    "server_options",
    "verbose_option",
]

F = TypeVar("F", bound=Callable[..., Any])

LOG_NAMES = [name for name in CLIENT_ORDER if name.startswith("log_")]

LOCAL_NAMES = ["listen", "username", "password", "status_listen", "status_host", "status_token", "control"]
"""What only a command with local ports takes."""

DEMO_NAMES = ["listen", "status_listen", "status_host", "status_token", *LOG_NAMES]
DEMO_PREFIX = "ECH_WORKERS_DEMO_"

REACH_NAMES = [name for name in CLIENT_ORDER if name not in LOCAL_NAMES]
"""What it takes to reach a server."""


class SchemaOption(click.Option):
    """An option of a schema. The environment is read by ``options.sources``; here its variable is only shown."""

    def resolve_envvar_value(self, ctx: click.Context) -> None:
        return None

    def get_help_extra(self, ctx: click.Context) -> Any:
        extra = super().get_help_extra(ctx)
        if "default" in extra:
            # Without the brackets that click puts around a default in words.
            extra["default"] = str(self.show_default)
        return extra


class Value(click.ParamType[Any]):
    """The value of an option as its declaration reads it."""

    def __init__(self, declared: Option) -> None:
        self.name = declared.kind
        self._declared = declared

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return parse(self._declared, value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


SECONDS = Value(Option(name="time", kind="seconds", several=False, default=None, about=""))
"""A time: ``90``, ``1.5``, ``500ms``, ``90s``, ``10m``, ``1h``."""


def _options(schema: Schema, names: Iterable[str], prefix: str) -> Callable[[F], F]:
    known = options_of(schema)

    def decorate(command: F) -> F:
        for name in reversed(list(names)):
            command = _option(known[name], prefix)(command)
        return command

    return decorate


def _option(declared: Option, prefix: str) -> Callable[[F], F]:
    attributes: dict[str, Any] = {
        "cls": SchemaOption,
        "help": _sentence(declared.about),
        "envvar": prefix + declared.name.upper(),
        "show_envvar": True,
        "default": None,
        # As a text: what is not given must look so, or a file could not give it.
        "show_default": declared.default_text,
    }
    if declared.kind == "switch":
        name = f"{declared.flag}/--{declared.off}" if declared.off else declared.flag
        return click.option(name, is_flag=True, **attributes)
    if declared.kind == "choice":
        kind: click.ParamType[Any] = click.Choice(declared.choices, case_sensitive=False)
    elif declared.path:
        kind = click.Path()
    else:
        kind = Value(declared)
    return click.option(
        declared.flag, type=kind, metavar=metavar(declared), multiple=declared.several or declared.repeats, **attributes
    )


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + "."


def client_options(command: F) -> F:
    """Everything that ``ClientConfig`` has an option for."""
    return _options(CLIENT, CLIENT_ORDER, CLIENT_PREFIX)(command)


def reach_options(command: F) -> F:
    """What is needed to reach a server: everything but the local ports."""
    return _options(CLIENT, REACH_NAMES, CLIENT_PREFIX)(command)


def server_options(command: F) -> F:
    """Everything that ``ServerConfig`` has an option for."""
    return _options(SERVER, SERVER_ORDER, SERVER_PREFIX)(command)


def demo_options(command: F) -> F:
    """What the demonstration takes of the proxy's options."""
    return _options(CLIENT, DEMO_NAMES, DEMO_PREFIX)(command)


def config_option(prefix: str) -> Callable[[F], F]:
    """``--config``."""
    return click.option(
        "--config",
        type=click.Path(),
        metavar="FILE",
        envvar=f"{prefix}CONFIG",
        show_envvar=True,
        help="The configuration file; empty: none. Without it the one in the user's or the system's configuration directory.",
    )


verbose_option = click.option("-v", "--verbose", is_flag=True, help="Details with errors, and --log-level debug.")


def given(ctx: click.Context, options: dict[str, Any]) -> Layer:
    """What the command line gives of these options."""
    return {
        name: Given(value[0] if _is_single(name, value) else value, f"--{name.replace('_', '-')}")
        for name, value in options.items()
        if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE
    }


def _is_single(name: str, value: Any) -> bool:
    """Whether an option that may be repeated was given once."""
    declared = options_of(CLIENT).get(name)
    return declared is not None and declared.repeats and isinstance(value, tuple) and len(value) == 1
