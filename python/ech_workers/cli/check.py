"""``ech-workers check``."""

from __future__ import annotations

from typing import Any

import click
import msgspec

from ech_workers.check import DEFAULT_TARGET, Check, Row
from ech_workers.cli import findings, logs
from ech_workers.cli.options import REACH_NAMES, config_option, given, reach_options, verbose_option
from ech_workers.options import load
from ech_workers.options.load import CLIENT_PREFIX


@click.command()
@config_option(CLIENT_PREFIX)
@reach_options
@click.option(
    "--target",
    metavar="URL",
    default=DEFAULT_TARGET,
    show_default=True,
    help="What to fetch through the tunnel; a large file makes the throughput sample meaningful.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line instead of rows.")
@verbose_option
@click.pass_context
def check(ctx: click.Context, /, verbose: bool, as_json: bool, target: str, config: str | None, **options: Any) -> int:
    """Try every layer between here and a target, and say what works, what does not, and what to try.

    The exit code is that of the first layer that fails.
    """
    loaded = load.client(given(ctx, options), config=config, names=REACH_NAMES)
    level = "error" if loaded.config.log_level == "info" else None
    logs.configure(loaded.config, loaded.config.log_file, verbose=verbose, level=level)
    made = Check(msgspec.structs.replace(loaded.config, listen=()), target=target)
    if as_json:
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
