"""The live table: what the tunnel is doing, redrawn once a second."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ech_workers.status.facts import Observer
from ech_workers.status.lines import SESSION_COLUMNS, Row, Tone, rows

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rich.console import RenderableType

    from ech_workers.status.facts import Facts, Session
    from ech_workers.tunnel import Tunnel

__all__ = ["render", "show"]

INTERVAL = 1.0

_STYLES: dict[Tone, str] = {"": "", "good": "green", "working": "cyan", "warning": "yellow", "bad": "red"}


def show(tunnel: Tunnel, wait: Callable[[float], bool], notes: Sequence[str] = ()) -> None:
    """Draws the table until ``wait(seconds)`` returns True."""
    console = Console()
    # Log lines scroll past above the table, unless they go elsewhere anyway.
    redirect = sys.stderr.isatty()
    with Live(console=console, auto_refresh=False, redirect_stdout=False, redirect_stderr=redirect) as live:
        observer = Observer(tunnel)
        while True:
            live.update(render(observer.look(), notes), refresh=True)
            if wait(INTERVAL):
                return


def render(facts: Facts, notes: Sequence[str] = ()) -> RenderableType:
    """The table at one moment."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for row in rows(facts):
        grid.add_row(row.label, _text(row))
    parts: list[RenderableType] = [grid]
    carrying = [session for session in facts.sessions if session.streams is not None]
    if carrying:
        parts += ["", _sessions(carrying)]
    if notes:
        parts += ["", *(Text(note) for note in notes)]
    return Group("", *parts)


def _text(row: Row) -> Text:
    text = Text(row.text, style=_STYLES[row.tone])
    if row.more:
        text.append(f"  {row.more}", style="default")
    return text


def _sessions(sessions: Sequence[Session]) -> Table:
    table = Table(box=None, padding=(0, 1), header_style="dim", pad_edge=False)
    for heading in SESSION_COLUMNS:
        table.add_column(heading, justify="left" if heading in ("id", "address") else "right", no_wrap=True)
    for session in sessions:
        cells = [cell(session) for cell in SESSION_COLUMNS.values()]
        table.add_row(*cells, style="dim" if session.state == "retiring" else None)
    return table
