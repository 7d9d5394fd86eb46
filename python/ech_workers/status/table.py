"""The live table: what the tunnel is doing, redrawn once a second on a screen of its own."""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import sys
import termios
import time
import tty
from typing import TYPE_CHECKING, Any, Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ech_workers.errors import EngineClosed
from ech_workers.status.carried import Carried, carried
from ech_workers.status.facts import Observer
from ech_workers.status.lines import CARRIED_COLUMNS, SESSION_COLUMNS, Row, Tone, duration, rows, size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import FrameType

    from rich.console import RenderableType

    from ech_workers.status.facts import Facts, Session
    from ech_workers.tunnel import Tunnel

__all__ = ["View", "fitted", "render", "show"]

INTERVAL = 1.0

_STYLES: dict[Tone, str] = {"": "", "good": "green", "working": "cyan", "warning": "yellow", "bad": "red"}

# On a small screen the first of these go first.
_LEAST_FIRST = ("resolver", "TLS", "last failure", "so far", "ECH", "server", "traffic")

_KEYS = "q quit  c connections  s servers  ? help"

_HELP = """Keys
  q        end the proxy
  c        the open connections, the youngest first
  s        the servers, one a line
  ?        this text
  any other key goes back to the table
  Ctrl-Z   leave it running in the background after `bg`; `fg` comes back

Words
  up         sessions are there, and connections are carried
  degraded   fewer sessions than wanted
  waiting    no session; the next attempt comes by itself
  retiring   a session that takes no new streams and ends with its last one
  ping       the time to the server and back"""


class Ending(Protocol):
    """What says that the command is to end."""

    def wait(self, seconds: float | None = None) -> bool: ...
    def ask(self) -> None: ...
    def fileno(self) -> int: ...


class View:
    """Which of the screens is shown."""

    def __init__(self) -> None:
        self.name = "table"

    def press(self, key: str) -> bool:
        """True when it asks for the end."""
        if key in ("q", "Q"):
            return True
        wanted = {"?": "help", "h": "help", "s": "servers", "c": "connections"}.get(key.lower(), "table")
        self.name = "table" if wanted == self.name else wanted
        return False


def show(
    tunnel: Tunnel, ending: Ending, notes: Sequence[str] = (), lines: Callable[[int], Sequence[str]] | None = None
) -> None:
    """Draws until the end is asked for. lines: the last log lines, which are shown below, as many as there is room for."""
    console = Console()
    view, observer = View(), Observer(tunnel)
    with _screen(console) as live, _keys() as keyboard:
        due = time.monotonic()
        facts = observer.look()
        while True:
            if live.is_due or time.monotonic() >= due:
                # A key redraws without a look, so that the rates are of a second.
                with contextlib.suppress(EngineClosed):
                    if time.monotonic() >= due:
                        facts = observer.look()
                        due = time.monotonic() + INTERVAL
            live.draw(_drawn(view, tunnel, facts, notes, lines, console))
            if _wait(ending, keyboard, view, max(0.0, due - time.monotonic())):
                return


def _wait(ending: Ending, keyboard: int | None, view: View, seconds: float) -> bool:
    """Until something is to be drawn; True when the end was asked for."""
    poll = select.poll()
    poll.register(ending.fileno(), select.POLLIN)
    if keyboard is not None:
        poll.register(keyboard, select.POLLIN)
    ready = [descriptor for descriptor, _ in poll.poll(seconds * 1000 + 1)]
    if keyboard is not None and keyboard in ready:
        typed = os.read(keyboard, 64).decode(errors="replace")
        # An arrow or a function key is a sequence that begins with an escape; it is no letter.
        if typed and not typed.startswith("\x1b") and view.press(typed[0]):
            ending.ask()
    return ending.wait(0)


class _Screen:
    """The alternate screen of the terminal, which gives back what was there before."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live: Live | None = None
        self.is_due = False

    def enter(self) -> None:
        self._live = Live(
            console=self._console, screen=True, auto_refresh=False, redirect_stdout=False, redirect_stderr=False
        )
        self._live.start()
        self.is_due = True

    def leave(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def draw(self, what: RenderableType) -> None:
        self.is_due = False
        if self._live is not None:
            self._live.update(what, refresh=True)


@contextlib.contextmanager
def _screen(console: Console) -> Iterator[_Screen]:
    """Entered and left with the program: also when it is stopped (Ctrl-Z) and goes on (fg), and drawn anew in another size."""
    screen = _Screen(console)
    own_terminal = sys.stderr.isatty()
    logger = logging.getLogger("ech_workers")
    # What would be written across the table; the last lines are shown in it.
    silenced = [
        handler
        for handler in logger.handlers
        if own_terminal and isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler)
    ]

    def stop(number: int, frame: FrameType | None) -> None:
        screen.leave()
        settings = _settings()
        os.kill(os.getpid(), signal.SIGSTOP)
        # Here it goes on, perhaps in a terminal that the shell has set in its own way.
        _restore(settings)
        screen.enter()

    def resize(number: int, frame: FrameType | None) -> None:
        screen.is_due = True

    before = {
        signal.SIGTSTP: signal.signal(signal.SIGTSTP, stop),
        signal.SIGWINCH: signal.signal(signal.SIGWINCH, resize),
    }
    for handler in silenced:
        handler.addFilter(_nothing)
    screen.enter()
    try:
        yield screen
    finally:
        screen.leave()
        for handler in silenced:
            handler.removeFilter(_nothing)
        for number, old in before.items():
            signal.signal(number, old)


def _nothing(record: logging.LogRecord) -> bool:
    return False


@contextlib.contextmanager
def _keys() -> Iterator[int | None]:
    """The keyboard, key by key and unseen; None where the input is no terminal."""
    if not sys.stdin.isatty():
        yield None
        return
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    try:
        # Control keys go on to be signals.
        tty.setcbreak(descriptor, termios.TCSANOW)
        yield descriptor
    finally:
        termios.tcsetattr(descriptor, termios.TCSANOW, before)


def _settings() -> list[Any] | None:
    return termios.tcgetattr(sys.stdin.fileno()) if sys.stdin.isatty() else None


def _restore(settings: list[Any] | None) -> None:
    if settings is not None:
        with contextlib.suppress(termios.error):
            termios.tcsetattr(sys.stdin.fileno(), termios.TCSANOW, settings)


def _drawn(
    view: View,
    tunnel: Tunnel,
    facts: Facts,
    notes: Sequence[str],
    lines: Callable[[int], Sequence[str]] | None,
    console: Console,
) -> RenderableType:
    if view.name == "help":
        return Text(_HELP)
    if view.name == "servers":
        return _servers(tunnel)
    if view.name == "connections":
        return _connections(tunnel, console.height - 5)
    return fitted(facts, notes, console, lines)


def _connections(tunnel: Tunnel, room: int) -> RenderableType:
    table = Table(box=None, padding=(0, 1), header_style="dim", pad_edge=False)
    for heading in CARRIED_COLUMNS:
        right = heading in ("up", "down", "age")
        table.add_column(heading, justify="right" if right else "left", no_wrap=True, overflow="ellipsis")
    found: list[Carried] = []
    with contextlib.suppress(EngineClosed):
        found = carried(tunnel, None)
    for one in found[: -max(1, room) - 1 : -1]:
        table.add_row(*(cell(one) for cell in CARRIED_COLUMNS.values()))
    more = f"and {len(found) - table.row_count} more; " if len(found) > table.row_count else ""
    return Group(table, "", Text(f"{more}any key goes back", style="dim"))


def _servers(tunnel: Tunnel) -> RenderableType:
    table = Table(box=None, padding=(0, 1), header_style="dim", pad_edge=False)
    for heading in ("server", "state", "sessions", "why"):
        table.add_column(heading, overflow="fold" if heading == "why" else "ellipsis")
    with contextlib.suppress(EngineClosed):
        for name, upstream in zip(tunnel.config.upstreams, tunnel.status().upstreams, strict=False):
            why = "" if upstream.cause is None else upstream.cause.line()
            if upstream.next_attempt_in is not None:
                why += f" (next attempt in {duration(upstream.next_attempt_in)})"
            table.add_row(name.name, upstream.phase, f"{len(upstream.sessions)} of {upstream.wanted}", why)
    return Group(table, "", Text("any key goes back", style="dim"))


def fitted(
    facts: Facts, notes: Sequence[str], console: Console, lines: Callable[[int], Sequence[str]] | None = None
) -> RenderableType:
    """The table as far as it fits the terminal: what matters least is left out first, and of the sessions the busiest stay."""
    room = console.height - 1
    chosen = rows(facts)
    carrying = sorted(
        (session for session in facts.sessions if session.streams is not None),
        key=lambda session: (-(session.streams or 0), session.session),
    )
    least = list(_LEAST_FIRST)
    said = list(notes)
    # A line between, the heading, one session, and a line for the others.
    needed = min(len(carrying), 2) + 2 if carrying else 0
    while _height(console, _grid(chosen)) + needed + (len(said) + 1 if said else 0) > room and (said or least):
        if said:
            said.pop()
        else:
            label = least.pop(0)
            chosen = [row for row in chosen if row.label != label]
    parts: list[RenderableType] = [_grid(chosen)]
    left = room - _height(console, _grid(chosen)) - (len(said) + 1 if said else 0)
    if carrying and left >= needed:
        fits = left - 2
        shown = carrying if len(carrying) <= fits else carrying[: max(1, fits - 1)]
        parts += ["", _sessions(sorted(shown, key=lambda session: session.session))]
        left -= 2 + len(shown)
        if len(shown) < len(carrying):
            parts.append(Text(_others(carrying[len(shown) :]), style="dim", no_wrap=True, overflow="ellipsis"))
            left -= 1
    if said:
        parts += ["", *(Text(note) for note in said)]
    log = list(lines(left - 1)) if lines is not None and left > 1 else []
    if log:
        parts += ["", *(Text(line, style="dim", no_wrap=True, overflow="ellipsis") for line in log)]
    return Group(*parts, Text(_KEYS, style="dim", no_wrap=True, overflow="ellipsis"))


def _others(sessions: Sequence[Session]) -> str:
    up, down = (sum(getattr(session, name) or 0 for session in sessions) for name in ("bytes_up", "bytes_down"))
    streams = sum(session.streams or 0 for session in sessions)
    return f"and {len(sessions)} more: {streams} streams, up {size(up)}, down {size(down)}"


def _height(console: Console, what: RenderableType) -> int:
    return len(console.render_lines(what, pad=False))


def render(facts: Facts, notes: Sequence[str] = ()) -> RenderableType:
    """All of the table at one moment."""
    parts: list[RenderableType] = [_grid(rows(facts))]
    carrying = [session for session in facts.sessions if session.streams is not None]
    if carrying:
        parts += ["", _sessions(carrying)]
    if notes:
        parts += ["", *(Text(note) for note in notes)]
    return Group("", *parts)


def _grid(chosen: Sequence[Row]) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for row in chosen:
        grid.add_row(row.label, _text(row))
    return grid


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
