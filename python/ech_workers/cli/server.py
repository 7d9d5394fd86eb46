"""``ech-workers server``."""

from __future__ import annotations

import logging
import threading
from typing import Any

import click

from ech_workers.cli import logs
from ech_workers.cli.controlled import Reloader, controlled
from ech_workers.cli.options import config_option, given, server_options, verbose_option
from ech_workers.cli.service import Service
from ech_workers.cli.stopping import Stopping
from ech_workers.config import ServerConfig, authority
from ech_workers.options import load
from ech_workers.options.load import SERVER_PREFIX
from ech_workers.options.server import SERVER
from ech_workers.reload import Difference, difference

log = logging.getLogger("ech_workers.server")

# From the signal to the count of what has to be waited for, in seconds.
SETTLING = 0.2


@click.command()
@config_option(SERVER_PREFIX)
@server_options
@verbose_option
@click.pass_context
def server(ctx: click.Context, /, verbose: bool, config: str | None, **options: Any) -> None:
    """The other end of the tunnel: TLS 1.3 with ECH, WebSocket, yamux or one connection a WebSocket.

    SIGTERM and SIGINT end it in order: no new sessions, open streams may finish; a second signal ends it at once.
    """

    def read() -> load.Loaded[ServerConfig]:
        return load.server(given(ctx, options), config=config)

    loaded = read()
    _configure_logs(loaded.config, verbose)
    for warning in loaded.warnings:
        log.warning("%s", warning)
    from ech_workers.server import TunnelServer

    def take() -> Difference:
        new = read().config
        found = difference(SERVER, running.config, new)
        running.apply(new)
        _configure_logs(new, verbose)
        return found

    reloader = Reloader(take)
    with Stopping(reloader) as stopping:
        running = TunnelServer(loaded.config)
        with (
            controlled("server", loaded.config.control, running.status, stopping, reloader),
            Service(running.status) as service,
        ):
            click.echo(f"listening on {authority(*running.address)}")
            for address in running.status_addresses:
                click.echo(f"figures on http://{authority(*address)}/metrics")
            stopping.wait()
            service.stopping()
            drain = running.config.drain
            closing = threading.Thread(target=running.close, args=(drain,), daemon=True)
            closing.start()
            # Whoever has nothing to finish is gone within this time.
            closing.join(SETTLING)
            waited = running.snapshot()
            if closing.is_alive() and waited.sessions:
                log.info(
                    "draining for %g s at most: sessions: %d, streams: %d; another signal ends them",
                    drain,
                    waited.sessions,
                    waited.streams,
                )
            drained = stopping.wait_for(closing)
    log.info("stopped" if drained else "stopped without waiting for the rest")


def _configure_logs(config: ServerConfig, verbose: bool) -> None:
    logs.configure(config, config.log_file, verbose=verbose, secrets=[*config.tokens, config.status_token])
