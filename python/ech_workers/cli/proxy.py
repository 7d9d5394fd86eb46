"""``ech-workers proxy``."""

from __future__ import annotations

import logging
import os
import sys
from typing import TYPE_CHECKING, Any

import click
import msgspec

from ech_workers import descriptors
from ech_workers.cli import logs
from ech_workers.cli.controlled import Reloader, controlled
from ech_workers.cli.options import client_options, config_option, given, verbose_option
from ech_workers.cli.service import Service
from ech_workers.cli.stopping import Stopping
from ech_workers.config import ClientConfig, authority
from ech_workers.options import link as links
from ech_workers.options import load
from ech_workers.options.client import CLIENT
from ech_workers.options.load import CLIENT_PREFIX
from ech_workers.options.sources import Given
from ech_workers.reload import Difference, difference
from ech_workers.status.carried import carried
from ech_workers.status.facts import Observer
from ech_workers.tunnel import Tunnel

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from ech_workers._native import Event

log = logging.getLogger("ech_workers")


@click.command()
@click.argument("link", metavar="[LINK]", required=False)
@config_option(CLIENT_PREFIX)
@client_options
@click.option(
    "--plain", is_flag=True, help="Single lines instead of the live table (also when the output is no terminal)."
)
@verbose_option
@click.pass_context
def proxy(
    ctx: click.Context, /, link: str | None, verbose: bool, plain: bool, config: str | None, **options: Any
) -> None:
    """A local SOCKS5 and HTTP port whose traffic goes through the tunnel.

    The port is open from the start and stays open: while the server cannot be reached, local programs get a failing
    reply, and the log says why. SIGINT and SIGTERM end it. LINK is one that ``ech-workers share`` prints.
    """
    linked = None if link is None else {name: Given(value, "LINK") for name, value in links.read(link).items()}

    def read() -> load.Loaded[ClientConfig]:
        return load.client(given(ctx, options), config=config, link=linked)

    loaded = read()
    made = loaded.config
    _configure_logs(made, verbose)
    for warning in loaded.warnings:
        log.warning("%s", warning)
    run(made, plain=plain, read=lambda: read().config, verbose=verbose)


def _configure_logs(config: ClientConfig, verbose: bool) -> None:
    logs.configure(config, config.log_file, verbose=verbose, secrets=secrets(config))


def secrets(config: ClientConfig) -> list[str | None]:
    """What no log line may show."""
    return [config.password, config.status_token, *(upstream.token for upstream in config.upstreams)]


def run(
    config: ClientConfig,
    *,
    plain: bool,
    notes: Callable[[Sequence[tuple[str, int]]], Sequence[str]] | None = None,
    read: Callable[[], ClientConfig] | None = None,
    verbose: bool = False,
) -> None:
    """Runs the tunnel until a signal ends it. ``notes`` makes, of the open ports, what to say below all else; ``read``
    gives the configuration as it is now, for a reload."""
    plain = plain or not shows_table()
    if config.username is None and not all(address.loopback for address in config.listen):
        log.warning(
            "the port is open to the network without a password: anyone there can use it (--username, --password)"
        )
    descriptors.raise_limit()
    tunnel = Tunnel.from_config(
        config,
        on_event=_say if plain and not _is_logged(config) else None,
        places=lambda config: descriptors.connections(
            config.max_connections, descriptors.limit(), each=descriptors.of_connection(config)
        ),
    )

    def take() -> Difference:
        assert read is not None
        new = read()
        found = difference(CLIENT, tunnel.config, new)
        tunnel.apply(new)
        _configure_logs(new, verbose)
        return found

    reloader = Reloader(take) if read is not None else None
    with Stopping(reloader) as stopping:
        try:
            tunnel.start()
            observer = Observer(tunnel)
            verbs = {"connections": lambda request: _connections(tunnel), "cut": lambda request: _cut(tunnel, request)}
            with (
                controlled("proxy", config.control, lambda: _status(tunnel, observer), stopping, reloader, verbs),
                Service(tunnel.status),
            ):
                below = [f"status page on http://{authority(*address)}/" for address in tunnel.status_addresses]
                below += notes(tunnel.addresses) if notes else ()
                if plain:
                    for address in tunnel.addresses:
                        click.echo(f"listening on {authority(*address)}")
                    for note in below:
                        click.echo(note)
                    stopping.wait()
                else:
                    from ech_workers.status.table import show

                    recent = logs.recent()
                    show(tunnel, stopping, below, recent.lines if recent is not None else None)
        finally:
            tunnel.close()
    log.info("stopped")


def _status(tunnel: Tunnel, observer: Observer) -> msgspec.Raw:
    from ech_workers.status.feed import frame

    return msgspec.Raw(frame(observer.look(), carried(tunnel)))


def _connections(tunnel: Tunnel) -> Iterator[object]:
    """Each of them; there may be thousands."""
    yield from carried(tunnel, None)


def _cut(tunnel: Tunnel, request: Mapping[str, Any]) -> Iterator[object]:
    number = request.get("id")
    yield isinstance(number, int) and number >= 0 and tunnel.cut(number)


def shows_table() -> bool:
    """Whether the output is a terminal on which a table can be redrawn."""
    return sys.stdout.isatty() and os.environ.get("TERM", "dumb") not in ("", "dumb", "unknown")


def _is_logged(config: ClientConfig) -> bool:
    """Whether the supervisor's own line about the first session is seen on standard error."""
    return config.log_file is None and log.isEnabledFor(logging.INFO)


def _say(event: Event) -> None:
    if type(event).__name__ == "SessionUp":
        from ech_workers.status.lines import session_up

        click.echo(session_up(event))  # type: ignore[arg-type]
