"""Options that know their environment variable, the kinds of values they take, and the groups that commands share."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeVar

import click

from ech_workers.config import DEFAULT_PROFILE, LOG_LEVELS

__all__ = ["SECONDS", "SIZE", "client_options", "log_options", "option", "status_option"]

F = TypeVar("F", bound=Callable[..., Any])

PREFIX = "ECH_WORKERS_"


class Option(click.Option):
    """An option that is also ``ECH_WORKERS_<NAME>``, the same for every command."""

    def __init__(self, *args: Any, **attributes: Any) -> None:
        super().__init__(*args, **attributes)
        if self.envvar is None and self.name is not None:
            self.envvar = PREFIX + self.name.upper()
            self.show_envvar = True


def option(*declarations: str, **attributes: Any) -> Callable[[F], F]:
    """``click.option`` with an environment variable."""
    return click.option(*declarations, cls=Option, **attributes)


class Seconds(click.ParamType[float]):
    """A time: ``90``, ``1.5``, ``500ms``, ``90s``, ``10m``, ``1h``."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, int | float):
            return float(value)
        match = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,9})?) *(ms|s|m|h|)", value.strip())
        if match is None:
            self.fail(f"{value!r} is no time; write 90, 500ms, 10m or 1h", param, ctx)
        return float(match[1]) * _TIME_UNITS[match[2]]


class Size(click.ParamType[int]):
    """A size in bytes: ``268435456``, ``256M``, ``1G`` (powers of 1024)."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"([0-9]{1,15}) *([KMG]?)(?:iB|B)?", value.strip(), re.IGNORECASE)
        if match is None:
            self.fail(f"{value!r} is no size; write 268435456, 256M or 1G", param, ctx)
        return int(match[1]) * _SIZE_UNITS[match[2].upper()]


_TIME_UNITS = {"": 1.0, "s": 1.0, "ms": 0.001, "m": 60.0, "h": 3600.0}
_SIZE_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}

SECONDS = Seconds()
SIZE = Size()


def client_options(command: F) -> F:
    """What is needed to reach a server: everything in ``ClientConfig.build`` but the local port."""
    for decorate in reversed(
        (
            option(
                "--server",
                required=True,
                metavar="HOST[:PORT]/PATH",
                help="The server: its name, which ECH hides, and the path of the upgrade.",
            ),
            option("--token", metavar="TEXT", help="The token that the server expects."),
            option("--token-file", metavar="FILE", help="Read the token from a file."),
            option(
                "--ech/--no-ech",
                default=True,
                show_default=True,
                help="Encrypted Client Hello. --no-ech shows the server's name to the network.",
            ),
            option(
                "--yamux/--no-yamux",
                default=True,
                show_default=True,
                help="Many connections over one session, or a WebSocket for each connection (for Workers).",
            ),
            option("--server-ip", multiple=True, metavar="IP", help="The server's address; nothing is looked up then."),
            option("--ech-domain", metavar="NAME", help="Take the ECH configuration from this name's HTTPS record."),
            option(
                "--ech-config",
                metavar="BASE64|@FILE",
                help="The ECH configuration list itself: base64, or a file with the raw list, base64 or RFC 9934 PEM.",
            ),
            option(
                "--ech-bootstrap",
                metavar="PUBLIC_NAME",
                help="When no resolver has an ECH configuration: ask the server itself, under its provider's public name.",
            ),
            option(
                "--doh-server",
                multiple=True,
                metavar="URL",
                help="A DoH resolver instead of the built-in ones (Cloudflare, Quad9, Google, AdGuard).",
            ),
            option("--doh-ip", multiple=True, metavar="IP", help="The address of --doh-server."),
            option(
                "--ca-file",
                metavar="PEM",
                help="Authorities to trust beside the system's, for the server and the resolvers.",
            ),
            option(
                "--profile",
                default=DEFAULT_PROFILE,
                show_default=True,
                metavar="NAME",
                help="The browser whose TLS hello is sent.",
            ),
            option(
                "--alpn",
                type=click.Choice(["auto", "http/1.1"]),
                default="auto",
                show_default=True,
                help="auto: as the browser does it, h2 first; http/1.1: the WebSocket hello from the first contact on.",
            ),
            option("--sessions", type=int, default=1, show_default=True, metavar="N", help="Sessions to keep up."),
            option(
                "--reply",
                type=click.Choice(["optimistic", "confirmed"]),
                default="optimistic",
                show_default=True,
                help="Answer local programs at once, or when the server has said that the target is reached.",
            ),
            option(
                "--open-timeout",
                type=SECONDS,
                default=8.0,
                show_default=True,
                help="How long a local connection waits for a session.",
            ),
            option(
                "--idle-timeout",
                type=SECONDS,
                default=600.0,
                show_default=True,
                help="When a connection without traffic ends.",
            ),
            option("--max-connections", type=int, default=4096, show_default=True, metavar="N", help="At a time."),
            option(
                "--memory-limit",
                type=SIZE,
                default="256M",
                show_default=True,
                help="What the receive windows of all streams may grow by together.",
            ),
            option("--cache-dir", metavar="DIR", help="Where ECH configurations are kept; empty: in memory alone."),
        )
    ):
        command = decorate(command)
    return command


status_option = option(
    "--status-listen",
    multiple=True,
    metavar="[ADDR:]PORT",
    help="A status page, its feed, /healthz and /metrics on this port; may be given several times.",
)


def log_options(command: F) -> F:
    """Where log lines go, and how many."""
    for decorate in reversed(
        (
            option(
                "--log-level",
                type=click.Choice(LOG_LEVELS, case_sensitive=False),
                default="info",
                show_default=True,
                help="The least level of log lines.",
            ),
            option("--log-file", metavar="FILE", help="Append log lines to a file instead of standard error."),
            click.option("-v", "--verbose", is_flag=True, help="Details with errors, and --log-level debug."),
        )
    ):
        command = decorate(command)
    return command
