"""``ech-workers status``, ``reload``, ``logs`` and ``stop``: what can be asked of a running proxy or server."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import shutil
import sys
import textwrap
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ech_workers import control

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

F = TypeVar("F", bound="Callable[..., Any]")


def _whom(command: F) -> F:
    for decorate in (
        click.option(
            "--of",
            "role",
            type=click.Choice(["proxy", "server"]),
            default="proxy",
            show_default=True,
            help="Which of the two is asked.",
        ),
        click.option(
            "--control", "path", type=click.Path(), metavar="FILE", help="Its control socket, if it is another one."
        ),
    ):
        command = decorate(command)
    return command


@contextlib.contextmanager
def _connection(role: str, path: str | None) -> Iterator[control.ControlClient]:
    if path is None:
        found = control.find(role)
        if not found:
            raise control.ControlError(
                f"no {role} of yours is running",
                code="control-none",
                advice=f"start it with `ech-workers {role}`, or name its socket with --control",
            )
        if len(found) > 1:
            click.echo(f"several are running; this is {found[0]}: --control names another", err=True)
        path = str(found[0])
    with control.ControlClient(Path(path)) as client:
        yield client


@click.command()
@_whom
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.option("--watch", is_flag=True, help="Again each second, until interrupted.")
def status(role: str, path: str | None, as_json: bool, watch: bool) -> int:
    """Say what a running proxy or server is doing, and why.

    Ends with 0 while connections are carried, otherwise with 1.
    """
    with _connection(role, path) as client:
        while True:
            (found,) = client.ask("status")
            if watch and not as_json and sys.stdout.isatty():
                click.clear()
            click.echo(json.dumps(found) if as_json else _fitting(_in_words(role, found)))
            if not watch:
                return 0 if role == "server" or found["facts"]["phase"] in ("up", "degraded") else 1
            time.sleep(1.0)


def _in_words(role: str, found: dict[str, Any]) -> str:
    tokens: list[dict[str, Any]] = []
    sessions: list[dict[str, Any]] = []
    if role == "server":
        tokens = found.pop("tokens")
        # One of an earlier version has none.
        sessions = found.pop("session_list", [])
        rows = [(label.replace("_", " "), _served(label, value)) for label, value in found.items()]
    else:
        rows = [
            (row["label"], f"{row['text']}{'  ' + row['more'] if row.get('more') else ''}")
            for row in found["words"]["rows"]
        ]
    lines = [f"{label:<{max(len(label) for label, _ in rows)}}  {text}" for label, text in rows]
    if tokens:
        from ech_workers.status.lines import size

        lines += [
            "",
            *_table(
                [
                    ["token", "sessions", "in all", "up", "down"],
                    *(
                        [
                            one["label"],
                            str(one["sessions"]),
                            str(one["sessions_total"]),
                            size(one["bytes_up"]),
                            size(one["bytes_down"]),
                        ]
                        for one in tokens
                    ),
                ]
            ),
        ]
    if sessions:
        from ech_workers.served import ServedSession
        from ech_workers.status.lines import SERVED_COLUMNS

        shown = [ServedSession(**one) for one in sessions]
        lines += [
            "",
            *_table([list(SERVED_COLUMNS), *([cell(one) for cell in SERVED_COLUMNS.values()] for one in shown)]),
        ]
        if len(shown) < found["sessions"]:
            lines.append(f"and {found['sessions'] - len(shown)} more")
    if role == "proxy" and found["words"]["sessions"]:
        lines += ["", *_table([found["words"]["headings"], *found["words"]["sessions"]])]
    return "\n".join(lines)


def _fitting(text: str) -> str:
    """On a terminal no line is broken inside a word: what is too long goes on below, behind the labels."""
    if not sys.stdout.isatty():
        return text
    width = shutil.get_terminal_size().columns
    lines: list[str] = []
    for line in text.splitlines():
        label = re.match(r"\S+(?: \S+)* {2,}", line)
        longest = max(map(len, line.split()), default=0)
        indent = " " * (label.end() if label and label.end() + longest <= width else 2)
        wrapped = textwrap.wrap(line, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
        lines += wrapped or [""]
    return "\n".join(lines)


def _served(label: str, value: object) -> str:
    """A value of the server's status, for people."""
    from ech_workers.status.lines import duration, size

    if label == "uptime" and isinstance(value, int | float):
        return duration(value)
    if label.startswith("bytes") and isinstance(value, int):
        return size(value)
    if isinstance(value, dict):
        return ", ".join(f"id {number}: {count}" for number, count in value.items()) or "-"
    return (", ".join(map(str, value)) or "-") if isinstance(value, list) else str(value)


def _table(rows: list[list[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


@click.command()
@click.option("--control", "path", type=click.Path(), metavar="FILE", help="Its control socket, if it is another one.")
@click.option("--json", "as_json", is_flag=True, help="A JSON object a line.")
@click.option(
    "--kill", multiple=True, type=click.IntRange(0), metavar="ID", help="End this one; may be given several times."
)
def connections(path: str | None, as_json: bool, kill: tuple[int, ...]) -> int:
    """List the open connections of a running proxy, or end some of them.

    With --kill it ends with 1 if one of them was not open.
    """
    with _connection("proxy", path) as client:
        if kill:
            missing = [number for number in kill if not next(iter(list(client.ask("cut", id=number))), False)]
            for number in missing:
                click.echo(f"{number} is not open", err=True)
            return 1 if missing else 0
        found = list(client.ask("connections"))
    if as_json:
        for one in found:
            click.echo(json.dumps(one))
        return 0
    from ech_workers.status.carried import Carried
    from ech_workers.status.lines import CARRIED_COLUMNS

    shown = [Carried(**one) for one in found]
    rows = [list(CARRIED_COLUMNS), *([cell(one) for cell in CARRIED_COLUMNS.values()] for one in shown)]
    click.echo(_fitting("\n".join(_table(rows))) if found else "no connection is open")
    return 0


@click.command()
@_whom
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def reload(role: str, path: str | None, as_json: bool) -> None:
    """Have a running proxy or server read its configuration again.

    Says what was applied, what holds for what is new alone, and what needs a restart. A wrong configuration changes nothing.
    """
    with _connection(role, path) as client:
        (found,) = client.ask("reload", timeout=60.0)
    if as_json:
        click.echo(json.dumps(found))
        return
    from ech_workers.reload import Difference

    click.echo(Difference(**{name: tuple(names) for name, names in found.items()}).line())


@click.command()
@_whom
@click.option("-f", "--follow", is_flag=True, help="Go on with each new line, until interrupted.")
@click.option(
    "-n", "--lines", type=click.IntRange(0, 500), default=20, show_default=True, help="So many of the last ones."
)
def logs(role: str, path: str | None, follow: bool, lines: int) -> None:
    """Show the last log lines of a running proxy or server."""
    with _connection(role, path) as client:
        try:
            for line in client.ask("logs", follow=follow, lines=lines, timeout=None if follow else 30.0):
                if line is not None:
                    click.echo(line)
        except control.ControlError as error:
            # It was stopped while it was followed.
            if not (follow and error.code == "control-ended"):
                raise


@click.command()
@_whom
def stop(role: str, path: str | None) -> None:
    """End a running proxy or server in order, and wait for that."""
    with _connection(role, path) as client:
        process = next(client.ask("stop"))["pid"]
        with contextlib.suppress(ProcessLookupError):
            # Readable when the process has ended (pidfd_open(2)).
            handle = os.pidfd_open(process)
            try:
                select.select([handle], [], [])
            finally:
                os.close(handle)
    click.echo(f"stopped: process {process}")
