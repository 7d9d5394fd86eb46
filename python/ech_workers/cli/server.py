"""``ech-workers server``."""

from __future__ import annotations

import logging
import threading
from typing import Any

import click

from ech_workers.cli import logs
from ech_workers.cli.options import config_option, given, server_options, verbose_option
from ech_workers.cli.stopping import Stopping
from ech_workers.config import authority
from ech_workers.options import load
from ech_workers.options.load import SERVER_PREFIX

log = logging.getLogger("ech_workers.server")


@click.command()
@config_option(SERVER_PREFIX)
@server_options
@verbose_option
@click.pass_context
def server(ctx: click.Context, /, verbose: bool, config: str | None, **options: Any) -> None:
    """The other end of the tunnel: TLS 1.3 with ECH, WebSocket, yamux or one connection a WebSocket.

    SIGTERM and SIGINT end it in order: no new sessions, open streams may finish; a second signal ends it at once.
    """
    loaded = load.server(given(ctx, options), config=config)
    made = loaded.config
    logs.configure(made, made.log_file, verbose=verbose, secrets=made.tokens)
    for warning in loaded.warnings:
        log.warning("%s", warning)
    from ech_workers.server import TunnelServer

    with Stopping() as stopping:
        running = TunnelServer(made)
        click.echo(f"listening on {authority(*running.address)}")
        stopping.wait()
        streams = running.snapshot().streams
        if streams:
            log.info("draining for %g s at most: streams still open: %d; another signal ends them", made.drain, streams)
        closing = threading.Thread(target=running.close, args=(made.drain,), daemon=True)
        closing.start()
        drained = stopping.wait_for(closing)
    log.info("stopped" if drained else "stopped without waiting for the rest")
