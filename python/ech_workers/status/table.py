"""The live table: what the tunnel is doing, redrawn once a second."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, NamedTuple

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ech_workers.config import authority
from ech_workers.status.lines import duration, size

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rich.console import RenderableType

    from ech_workers._native import Snapshot
    from ech_workers.resolvers import ResolverStatus
    from ech_workers.supervisor import SupervisorStatus
    from ech_workers.tunnel import Tunnel

__all__ = ["Rates", "render", "show"]

INTERVAL = 1.0

_COLOURS = {"up": "green", "degraded": "yellow", "resolving": "cyan", "connecting": "cyan", "waiting": "red"}
_SOURCES = {
    "dns": "from the HTTPS record of {}",
    "retry": "handed over by {}",
    "option": "given with --ech-config",
    "bootstrap": "asked from {} without DNS",
}


class Rates(NamedTuple):
    """Bytes a second since the last time."""

    up: float = 0.0
    down: float = 0.0

    @classmethod
    def between(cls, before: Snapshot, after: Snapshot, seconds: float) -> Rates:
        if seconds <= 0:
            return cls()
        return cls((after.bytes_up - before.bytes_up) / seconds, (after.bytes_down - before.bytes_down) / seconds)


def show(tunnel: Tunnel, wait: Callable[[float], bool], notes: Sequence[str] = ()) -> None:
    """Draws the table until ``wait(seconds)`` returns True."""
    console = Console()
    # Log lines scroll past above the table, unless they go elsewhere anyway.
    redirect = sys.stderr.isatty()
    with Live(console=console, auto_refresh=False, redirect_stdout=False, redirect_stderr=redirect) as live:
        before, at, rates = tunnel.snapshot(), time.monotonic(), Rates()
        while True:
            live.update(render(tunnel.status(), before, rates, tunnel.addresses, notes), refresh=True)
            if wait(INTERVAL):
                return
            after, now = tunnel.snapshot(), time.monotonic()
            rates = Rates.between(before, after, now - at)
            before, at = after, now


def render(
    status: SupervisorStatus,
    snapshot: Snapshot,
    rates: Rates,
    addresses: Sequence[tuple[str, int]],
    notes: Sequence[str] = (),
) -> RenderableType:
    """The table at one moment."""
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column(overflow="fold")
    ports = ", ".join(authority(*address) for address in addresses)
    facts.add_row("listening", f"{ports}  (SOCKS5 and HTTP)" if ports else "no port")
    facts.add_row("server", f"{status.server}  ({status.mode})")
    facts.add_row("state", _state(status))
    facts.add_row("ECH", _ech(status))
    if status.sessions:
        newest = status.sessions[-1]
        facts.add_row(
            "TLS", f"{newest.profile}, {newest.cipher}, {newest.group}{', resumed' if newest.resumed else ''}"
        )
    for resolver in status.resolvers:
        if resolver.state != "untried":
            facts.add_row("resolver", Text(_resolver(resolver), style="" if resolver.state == "ok" else "yellow"))
    facts.add_row("traffic", f"up {size(rates.up)}/s, down {size(rates.down)}/s")
    facts.add_row(
        "so far",
        f"up {size(snapshot.bytes_up)}, down {size(snapshot.bytes_down)}; connections: {snapshot.connections} open,"
        f" {snapshot.connections_waiting} waiting, {snapshot.connections_total} in all,"
        f" {snapshot.connections_failed} failed",
    )
    if snapshot.last_target_failure is not None:
        facts.add_row(
            "last failure", Text(f"{snapshot.last_target_failure} (failed targets: {snapshot.targets_failed})")
        )
    parts: list[RenderableType] = [facts]
    if snapshot.sessions:
        parts += ["", _sessions(snapshot)]
    if notes:
        parts += ["", *(Text(note) for note in notes)]
    return Group("", *parts)


def _sessions(snapshot: Snapshot) -> Table:
    table = Table(box=None, padding=(0, 1), header_style="dim", pad_edge=False)
    for heading in ("id", "address"):
        table.add_column(heading, no_wrap=True)
    for heading in ("streams", "in all", "ping", "up", "down", "age"):
        table.add_column(heading, justify="right", no_wrap=True)
    for session in snapshot.sessions:
        table.add_row(
            str(session.session),
            session.address,
            str(session.streams),
            str(session.streams_total),
            "-" if session.rtt_ms is None else f"{session.rtt_ms:.1f} ms",
            size(session.bytes_up),
            size(session.bytes_down),
            duration(session.age),
            style="dim" if session.state == "retiring" else None,
        )
    return table


def _state(status: SupervisorStatus) -> Text:
    text = Text(status.phase, style=_COLOURS.get(status.phase, "bold"))
    if status.cause is not None:
        text.append(f"  {status.cause.line()}", style="default")
        if status.next_attempt_in is not None:
            text.append(f" (next attempt in {duration(status.next_attempt_in)})", style="dim")
    return text


def _ech(status: SupervisorStatus) -> Text:
    ech = status.ech
    if ech is None:
        known = any(session.ech == "off" for session in status.sessions)
        return Text("off: the network sees the server's name", style="yellow") if known else Text("-")
    accepted = any(session.ech == "accepted" for session in status.sessions)
    words = [
        "accepted" if accepted else "known",
        f"the network sees {ech.public_name}" if ech.public_name else "",
        _SOURCES.get(ech.source, ech.source).format(ech.origin),
        f"{duration(ech.age)} old" if ech.age is not None and ech.source != "option" else "",
        "stale" if ech.expires_in is not None and ech.expires_in < 0 else "",
        f"not refreshed: {ech.problem}" if ech.problem else "",
    ]
    return Text(", ".join(filter(None, words)), style="green" if accepted else "")


def _resolver(resolver: ResolverStatus) -> str:
    if resolver.state == "ok":
        return f"{resolver.url}  {resolver.ms or 0:.0f} ms, {resolver.http_version}"
    retry = "" if resolver.retry_in is None else f" (asked again in {duration(resolver.retry_in)})"
    return f"{resolver.url}  {resolver.error}{retry}"
