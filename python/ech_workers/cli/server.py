"""``ech-workers server``."""

from __future__ import annotations

import logging
import threading
from typing import Any

import click

from ech_workers.cli import logs
from ech_workers.cli.options import SECONDS, log_options, option
from ech_workers.cli.stopping import Stopping
from ech_workers.config import ServerConfig, authority

log = logging.getLogger("ech_workers.server")


@click.command()
@option("--listen", required=True, metavar="ADDR:PORT", help="The address to listen on; port 0 takes a free one.")
@option("--cert", multiple=True, required=True, metavar="PEM", help="Certificate chain; may be given several times.")
@option("--key", multiple=True, required=True, metavar="PEM", help="Its private key, in the same order.")
@option("--ech-keys", metavar="DIR", help="ECH keys (RFC 9934 files); watched, and changed without a restart.")
@option("--token", multiple=True, metavar="TEXT", help="A token that clients may use; may be given several times.")
@option("--token-file", metavar="FILE", help="Tokens, one a line.")
@option("--path", default="/", show_default=True, metavar="PATH", help="The path of the upgrade; / takes every path.")
@option("--decoy", metavar="HTML", help="The page that everyone else gets to see.")
@option(
    "--allow-private-targets/--refuse-private-targets",
    default=False,
    show_default=True,
    help="Whether targets in the server's own network may be reached.",
)
@option("--max-sessions", type=int, default=10000, show_default=True, metavar="N", help="Connections at a time.")
@option("--max-streams", type=int, default=1024, show_default=True, metavar="N", help="Streams of one session.")
@option("--connect-timeout", type=SECONDS, default=10.0, show_default=True, help="For reaching a target.")
@option("--idle-timeout", type=SECONDS, default=600.0, show_default=True, help="When a stream without traffic ends.")
@option("--drain", type=SECONDS, default=30.0, show_default=True, help="How long streams may go on after SIGTERM.")
@option("--workers", type=int, default=1, show_default=True, metavar="N", help="Threads that carry traffic.")
@log_options
def server(verbose: bool, **options: Any) -> None:
    """The other end of the tunnel: TLS 1.3 with ECH, WebSocket, yamux or one connection a WebSocket.

    SIGTERM and SIGINT end it in order: no new sessions, open streams may finish; a second signal ends it at once.
    """
    config = ServerConfig.build(**options)
    logs.configure(config.log_level, config.log_file, verbose=verbose)
    from ech_workers.server import TunnelServer

    with Stopping() as stopping:
        running = TunnelServer(config)
        click.echo(f"listening on {authority(*running.address)}")
        stopping.wait()
        streams = running.snapshot().streams
        if streams:
            log.info(
                "draining for %g s at most: streams still open: %d; another signal ends them", config.drain, streams
            )
        closing = threading.Thread(target=running.close, args=(config.drain,), daemon=True)
        closing.start()
        drained = stopping.wait_for(closing)
    log.info("stopped" if drained else "stopped without waiting for the rest")
