"""``ech-workers worker``."""

from __future__ import annotations

import json
import re
import secrets
from pathlib import Path

import click

from ech_workers.cli.groups import Group
from ech_workers.errors import ConfigError


@click.group(cls=Group)
def worker() -> None:
    """A Cloudflare Worker as the other end of the tunnel."""


@worker.command()
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--name", metavar="NAME", help="The Worker's name, the first part of its host name; default: made up.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def init(directory: Path, name: str | None, as_json: bool) -> None:
    """Write a Worker's project into DIR, to be deployed in three steps (DIR/README.md).

    No two projects are alike in names, paths, page and layout of the code. Cloudflare's terms do not allow a Worker to be
    used as a proxy: a deployment may vanish at any time, so give the client several servers.
    """
    from ech_workers.worker import create

    if name is not None and not re.fullmatch(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?", name):
        raise ConfigError(
            f"{name!r} is no name of a Worker",
            option="--name",
            advice="1 to 63 small letters, digits and hyphens, no hyphen at an end",
        )
    project = create(directory.expanduser(), name=name)
    token = secrets.token_urlsafe(24)
    secret = project.variables["TOKEN"]
    if as_json:
        click.echo(
            json.dumps(
                {
                    "directory": str(project.directory),
                    "name": project.name,
                    "entry_path": project.entry_path,
                    "variables": project.variables,
                    "token": token,
                }
            )
        )
        return
    click.echo(
        f"project  {project.directory} (its README.md says more)\n"
        f"token    {token} (made up just now, written nowhere)\n"
        f"deploy   npm ci\n"
        f"         npx wrangler secret put {secret}\n"
        f"         npx wrangler deploy\n"
        f"use      ech-workers proxy --server {project.name}.ACCOUNT.workers.dev{project.entry_path} --no-yamux --token-file FILE"
    )
