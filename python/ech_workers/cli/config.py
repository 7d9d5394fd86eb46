"""``ech-workers config``: the configuration file."""

from __future__ import annotations

import json
import os
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ech_workers import files, rules
from ech_workers.cli.groups import Group
from ech_workers.cli.options import client_options, given
from ech_workers.errors import ConfigError
from ech_workers.options import file, load, reference
from ech_workers.options import link as links
from ech_workers.options.client import CLIENT, SERVER_TABLE
from ech_workers.options.schema import Option, options_of
from ech_workers.options.sources import Given

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ech_workers.options.sources import Layer, Settings

_of = click.option(
    "--of",
    "side",
    type=click.Choice(["proxy", "server"]),
    default="proxy",
    show_default=True,
    help="Whose configuration: the file of the server is another one.",
)
_file = click.option(
    "--config", "path", type=click.Path(), metavar="FILE", help="Another file than that of the default places."
)


@click.group(cls=Group)
def config() -> None:
    """The configuration file: try it, show what counts, write one."""


@config.command()
@_of
@_file
def check(side: str, path: str | None) -> None:
    """Read the file and the environment as the command would, and say what is wrong.

    Ends with 0 if nothing is.
    """
    loaded = _load(side, path)
    if side == "proxy":
        rules.compiled(loaded.config.rules)
    for warning in loaded.warnings:
        click.echo(f"warning: {warning}", err=True)
    click.echo(f"{loaded.path or 'there is no file: the environment alone'}: all right")


@config.command()
@_of
@_file
def show(side: str, path: str | None) -> None:
    """Show what counts for each option, and where it comes from. Secrets are left out."""
    loaded = _load(side, path)
    order = reference.CLIENT_ORDER if side == "proxy" else reference.SERVER_ORDER
    tables = loaded.tables
    for name in order:
        if not (tables and name in options_of(SERVER_TABLE)):
            click.echo(_line(loaded.settings, name))
    for table in tables:
        click.echo("\n[[server]]")
        for name in options_of(SERVER_TABLE):
            click.echo(_line(table, name, "address" if name == "server" else name))
    for rule in loaded.rules:
        click.echo("\n[[rule]]")
        for name in rule.given:
            click.echo(_line(rule, name))


@config.command()
@_of
def schema(side: str) -> None:
    """Print the JSON Schema of the file, for editors."""
    made = reference.json_schema() if side == "proxy" else reference.server_json_schema()
    click.echo(json.dumps(made, indent=2))


@config.command()
@click.argument("target", metavar="[FILE]", required=False, type=click.Path())
@client_options
@click.option("--force", is_flag=True, help="Replace a file that is there.")
@click.pass_context
def init(ctx: click.Context, /, target: str | None, force: bool, **options: Any) -> None:
    """Write a commented configuration file for ``proxy``, with the options that are given.

    Without FILE it is the user's own, which ``proxy`` finds by itself. What is missing is asked for on a terminal. The file
    can be read by its owner alone.
    """
    layer = given(ctx, options)
    _write(layer, target, force=force, is_asked=True)


@config.command(name="import")
@click.argument("link", metavar="LINK|-")
@click.argument("target", metavar="[FILE]", required=False, type=click.Path())
@click.option("--force", is_flag=True, help="Replace a file that is there.")
def import_(link: str, target: str | None, force: bool) -> None:
    """Write a configuration file from a link, as ``share`` prints it; - reads it from standard input.

    Other users of this machine see command lines, and the link may hold the token.
    """
    text = sys.stdin.read() if link == "-" else link
    _write({name: Given(value, "LINK") for name, value in links.read(text).items()}, target, force=force)


def _write(layer: Layer, target: str | None, *, force: bool, is_asked: bool = False) -> None:
    path = files.expand(target, "FILE") if target else _own_file()
    if path.exists() and not force:
        raise ConfigError(f"{path} is there already", option="FILE", advice="edit it, or replace it with --force")
    answers = _ask(layer) if is_asked else {}
    if is_asked and "server" not in layer and not answers:
        raise ConfigError(
            "is missing",
            option="--server",
            code="server-missing",
            advice="give --server HOST[:PORT]/PATH; on a terminal it is asked for",
        )
    values = {name: entry.value for name, entry in layer.items()} | answers
    given_too = {name: Given(value, f"--{name}") for name, value in answers.items()}
    loaded = load.client({**layer, **given_too}, config="", variables=_HOME)
    text = _commented(values, loaded.tables)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        aside = path.with_name(f".{path.name}.{os.getpid()}")
        descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
                stream.write(text)
            aside.replace(path)
        except BaseException:
            aside.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}", option="FILE") from None
    click.echo(f"written: {path}, for {loaded.config.server.authority}")
    flag = "" if target is None else f" --config {path}"
    click.echo(f"Try it: ech-workers check{flag}\nUse it: ech-workers proxy{flag}")


# Nothing of the environment counts for what is written, but where the user's cache is.
_HOME: dict[str, str] = {}


def _load(side: str, path: str | None) -> Any:
    return load.client({}, config=path) if side == "proxy" else load.server({}, config=path)


def _line(settings: Settings, name: str, spelled: str | None = None) -> str:
    entry = settings.given.get(name)
    shown = load.shown(settings, name, _toml)
    return f"{spelled or name} = {shown}  # {'default' if entry is None else entry.origin}"


def _own_file() -> Path:
    home = os.environ.get("XDG_CONFIG_HOME")
    folder = Path(home) if home else files.expand("~", "FILE") / ".config"
    return folder / "ech-workers" / file.CLIENT_FILE


def _ask(layer: Layer) -> dict[str, Any]:
    """What is missing, asked for where somebody is there to answer."""
    if "server" in layer:
        return {}
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return {}
    answers: dict[str, Any] = {}
    answers["server"] = click.prompt("Server (HOST[:PORT]/PATH)")
    if "token" not in layer and "token_file" not in layer:
        token = click.prompt("Token (it is not shown)", hide_input=True, default="", show_default=False)
        if token:
            answers["token"] = token
    return answers


def _commented(values: dict[str, Any], tables: Sequence[Settings] = ()) -> str:
    """The file: every option with what it is for, those that are not given as a comment."""
    known = options_of(CLIENT)
    of_server = options_of(SERVER_TABLE)
    if tables:
        values = {name: value for name, value in values.items() if name not in of_server}
    parts = [
        "# ech-workers proxy. Options that are commented out have their default.\n# `ech-workers config check` reads this file.\n",
    ]
    for name in reference.CLIENT_ORDER:
        declared = known[name]
        about = textwrap.wrap(declared.about, 100, break_long_words=False)
        lines = [f"# {line}" for line in about]
        if name in values:
            lines.append(f"{name} = {_toml(_whole(declared, values[name]))}")
        else:
            lines.append(f"#{name} = {_example(declared)}")
        parts.append("\n".join(lines) + "\n")
    for table in tables:
        lines = [
            f"{'address' if name == 'server' else name} = {_toml(_whole(of_server[name], entry.value))}"
            for name, entry in table.given.items()
        ]
        parts.append("\n".join(["[[server]]", *lines]) + "\n")
    return "\n".join([*parts, _RULE])


# A table comes after everything that stands outside of tables.
_RULE = """\
# Rules say which way connections go; the first one that a connection meets decides, and without one it goes through the
# tunnel. This one sends private networks direct, for targets that a program names by their address.
# [[rule]]
# network = ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7"]
# to = "direct"
"""


def _whole(declared: Option, value: Any) -> Any:
    """A path that was given on the command line is relative to where that was, not to the file."""
    absolute: Callable[[str], str] = lambda text: str(Path(text).expanduser().absolute())  # noqa: E731
    if declared.name == "ech_config" and isinstance(value, str) and value.startswith("@"):
        return "@" + absolute(value[1:])
    if declared.path and value and "-----BEGIN" not in str(value):
        return absolute(value)
    return list(value) if isinstance(value, tuple) else value


def _example(declared: Option) -> str:
    if declared.default is not None:
        return _toml(list(declared.default) if declared.several else declared.default)
    return '""'


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml(one) for one in value) + "]"
    return (
        json.dumps(value, ensure_ascii=False)
        if isinstance(value, str)
        else f"{value:g}"
        if isinstance(value, float)
        else str(value)
    )
