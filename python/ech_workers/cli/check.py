"""``ech-workers check``."""

from __future__ import annotations

from typing import Any

import click

from ech_workers.check import DEFAULT_TARGET, Check, Row
from ech_workers.cli import findings, logs
from ech_workers.cli.options import client_options, log_options, option
from ech_workers.config import ClientConfig


@click.command()
@client_options
@option(
    "--target",
    metavar="URL",
    default=DEFAULT_TARGET,
    show_default=True,
    help="What to fetch through the tunnel; a large file makes the throughput sample meaningful.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line instead of rows.")
@log_options
def check(verbose: bool, as_json: bool, target: str, **options: Any) -> int:
    """Try every layer between here and a target, and say what works, what does not, and what to try.

    The exit code is that of the first layer that fails.
    """
    config = ClientConfig.build(listen=None, **options)
    logs.configure("error" if config.log_level == "info" else config.log_level, config.log_file, verbose=verbose)
    made = Check(config, target=target)
    if as_json:
        import msgspec

        for row in made.rows():
            click.echo(msgspec.json.encode(row))
        return made.exit_code
    for row in made.rows():
        _show(row, verbose)
    if made.error is None:
        click.secho("everything works", fg="green")
    else:
        click.secho(f"it ends at {made.error.layer}", fg="red")
    return made.exit_code


def _show(row: Row, verbose: bool) -> None:
    findings.show(row.ok, row.layer, f"{row.subject}: {row.what}", ms=row.ms, advice=row.advice)
    if verbose and row.detail:
        for line in row.detail.splitlines():
            click.echo(f"{'':30}{line}")
