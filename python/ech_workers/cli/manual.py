"""The manual pages, made from the commands: what ``scripts/generate_reference.py`` writes for man(1)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import click

from ech_workers.cli import PROGRAM, commands

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["pages"]

_EXIT = (
    "0 well; 1 internal; 2 a wrong option or file; then one for each layer: 3 resolver, 4 tcp, 5 tls, 6 ech, 7 certificate,"
    " 8 websocket, 9 token, 10 yamux, 11 target, 12 local port."
)
_FILES = (
    ("$XDG_CONFIG_HOME/ech-workers/config.toml, /etc/ech-workers/config.toml", "The options of proxy and check."),
    ("$XDG_CONFIG_HOME/ech-workers/server.toml, /etc/ech-workers/server.toml", "The options of server."),
    ("$XDG_RUNTIME_DIR/ech-workers/", "The control sockets of those that run."),
)


def pages() -> dict[str, str]:
    """The text of each page by its file name."""
    root = click.Context(commands, info_name=PROGRAM, **commands.context_settings)
    found = {f"{PROGRAM}.1": "".join(_page(commands, root, subcommands=True))}
    for name, command, context in _commands(commands, root):
        found[f"{PROGRAM}-{name}.1"] = "".join(_page(command, context, subcommands=isinstance(command, click.Group)))
    return found


def _commands(group: click.Group, context: click.Context) -> Iterator[tuple[str, click.Command, click.Context]]:
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        inner = click.Context(command, info_name=name, parent=context)
        yield name, command, inner
        if isinstance(command, click.Group):
            for more, deeper, innermost in _commands(command, inner):
                yield f"{name}-{more}", deeper, innermost


def _page(command: click.Command, context: click.Context, *, subcommands: bool) -> Iterator[str]:
    title = context.command_path.replace(" ", "-")
    yield f'.TH "{title.upper()}" "1" "" "{PROGRAM}" "User Commands"\n'
    yield f".SH NAME\n{_text(title)} \\- {_text(command.get_short_help_str(300))}\n"
    usage = " ".join(command.collect_usage_pieces(context))
    yield f".SH SYNOPSIS\n.B {_text(context.command_path)}\n{_text(usage)}\n"
    yield f".SH DESCRIPTION\n{_paragraphs(command.help or '')}\n"
    shown = [record for parameter in command.get_params(context) if (record := parameter.get_help_record(context))]
    if shown:
        yield ".SH OPTIONS\n"
        for declaration, about in shown:
            yield f".TP\n.B {_text(declaration)}\n{_text(about)}\n"
    if subcommands and isinstance(command, click.Group):
        yield ".SH COMMANDS\n"
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            assert found is not None
            yield f".TP\n.B {_text(name)}\n{_text(found.get_short_help_str(300))}\n"
    if context.parent is None:
        yield ".SH FILES\n"
        for path, about in _FILES:
            yield f".TP\n.I {_text(path)}\n{_text(about)}\n"
    yield f".SH EXIT STATUS\n{_text(_EXIT)}\n"


def _paragraphs(text: str) -> str:
    paragraphs = (" ".join(part.split()) for part in re.split(r"\n\s*\n", text.strip()))
    return "\n.PP\n".join(_text(paragraph) for paragraph in paragraphs)


def _text(text: str) -> str:
    """Text for troff: its own characters are escaped, and no line begins with one of its requests."""
    escaped = text.replace("\\", r"\e").replace("-", r"\-").replace("``", "`")
    return rf"\&{escaped}" if escaped.startswith((".", "'")) else escaped
