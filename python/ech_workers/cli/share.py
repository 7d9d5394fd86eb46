"""``ech-workers share``."""

from __future__ import annotations

import sys
from typing import Any

import click

from ech_workers.cli.options import REACH_NAMES, config_option, given, reach_options
from ech_workers.options import link as links
from ech_workers.options import load
from ech_workers.options.load import CLIENT_PREFIX


@click.command()
@config_option(CLIENT_PREFIX)
@reach_options
@click.option("--name", metavar="TEXT", help="What the link calls the server, for people.")
@click.option("--qr/--no-qr", default=None, help="A QR code beside the link; on a terminal unless told otherwise.")
@click.pass_context
def share(ctx: click.Context, /, config: str | None, name: str | None, qr: bool | None, **options: Any) -> None:
    """Print one link for all that a client needs, and its QR code: for ``proxy LINK`` and ``config import LINK``.

    Takes the options of a client of the server, from the configuration file too. The link holds the token: whoever has it
    can use the server.
    """
    loaded = load.client(given(ctx, options), config=config, names=REACH_NAMES)
    text = links.make(loaded.config, name)
    click.echo(text)
    if qr if qr is not None else sys.stdout.isatty():
        show_code(text)


def show_code(text: str) -> None:
    """The QR code (ISO/IEC 18004) in half blocks."""
    import segno

    click.echo()
    segno.make_qr(text, error="l").terminal(compact=True)
