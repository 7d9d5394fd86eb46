"""Single lines about the tunnel, the facts of the moment in words, and figures written for people."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import msgspec

from ech_workers.stalls import amount

if TYPE_CHECKING:
    from collections.abc import Callable

    from ech_workers import _native
    from ech_workers.probes import ProbeStatus
    from ech_workers.resolvers import ResolverStatus
    from ech_workers.served import ServedSession
    from ech_workers.status.carried import Carried
    from ech_workers.status.facts import Facts, Server, Session

__all__ = [
    "CARRIED_COLUMNS",
    "HANDSHAKE_COLUMNS",
    "SERVED_COLUMNS",
    "SESSION_COLUMNS",
    "Row",
    "Tone",
    "duration",
    "rows",
    "session_up",
    "size",
]

Tone = Literal["", "good", "working", "warning", "bad"]


def session_up(session: _native.SessionUp) -> str:
    """``session up: ...``, with what the network saw and what it took."""
    if session.ech == "accepted":
        ech = f"ECH accepted (public name {session.public_name}{', after a retry' if session.retried else ''})"
    else:
        ech = "ECH off"
    milliseconds = session.tcp_ms + session.tls_ms + session.websocket_ms
    return (
        f"session up: {session.session} to {session.address}, {ech}, {session.cipher} {session.group}"
        f"{', resumed' if session.resumed else ''}, {session.profile}, {milliseconds:.0f} ms"
    )


def size(count: float) -> str:
    """Bytes with a binary unit: ``0 B``, ``1.5 KiB``, ``12.0 MiB``."""
    if count < 1024:
        return f"{count:.0f} B"
    for unit in ("KiB", "MiB", "GiB"):
        count /= 1024
        if count < 1024:
            return f"{count:.1f} {unit}"
    return f"{count / 1024:.1f} TiB"


def duration(seconds: float) -> str:
    """``12 s``, ``3 min``, ``5 h 7 min``, ``2 d 4 h``."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


class Row(msgspec.Struct, frozen=True):
    """One fact in words: a label, what is the matter (and whether that is good), and what else belongs to it."""

    label: str
    text: str
    tone: Tone = ""
    more: str = ""


def rows(facts: Facts) -> list[Row]:
    """Everything but the sessions, in the order in which it is shown."""
    found = [
        Row("listening", ", ".join(facts.listening), more="(SOCKS5 and HTTP)")
        if facts.listening
        else Row("listening", "no port"),
        *([_server(server) for server in facts.servers] or [Row("server", facts.server, more=f"({facts.mode})")]),
        _state(facts),
        _ech(facts),
    ]
    if facts.sessions and (newest := facts.sessions[-1]).profile is not None:
        found.append(
            Row("TLS", f"{newest.profile}, {newest.cipher}, {newest.group}{', resumed' if newest.resumed else ''}")
        )
    if facts.probe is not None:
        found.append(_probe(facts.probe))
    found += [_resolver(resolver) for resolver in facts.resolvers if resolver.state != "untried"]
    rates, connections = facts.rates, facts.connections
    found += [
        Row("traffic", "-" if rates is None else f"up {size(rates.up)}/s, down {size(rates.down)}/s"),
        Row(
            "so far",
            f"up {size(facts.bytes_up)}, down {size(facts.bytes_down)}; connections: {connections.open} open,"
            f" {connections.waiting} waiting, {connections.total} in all, {connections.failed} failed",
        ),
    ]
    if facts.last_target_failure is not None:
        found.append(Row("last failure", f"{facts.last_target_failure} (failed targets: {facts.targets_failed})"))
    return found


SESSION_COLUMNS: dict[str, Callable[[Session], str]] = {
    "id": lambda session: str(session.session),
    "address": lambda session: session.address,
    "streams": lambda session: _count(session.streams),
    "in all": lambda session: _count(session.streams_total),
    "ping": lambda session: _milliseconds(session.rtt_ms),
    "up": lambda session: "-" if session.bytes_up is None else size(session.bytes_up),
    "down": lambda session: "-" if session.bytes_down is None else size(session.bytes_down),
    "age": lambda session: duration(session.age),
}
"""What is shown of a session: heading, and how its cell is written."""

CARRIED_COLUMNS: dict[str, Callable[[Carried], str]] = {
    "id": lambda one: str(one.id),
    "target": lambda one: one.target,
    "by": lambda one: one.protocol,
    "way": lambda one: one.way if one.server is None else one.server,
    "up": lambda one: size(one.bytes_up),
    "down": lambda one: size(one.bytes_down),
    "age": lambda one: duration(one.age),
}
"""What is shown of an open connection."""

SERVED_COLUMNS: dict[str, Callable[[ServedSession], str]] = {
    "id": lambda one: str(one.session),
    "token": lambda one: one.token,
    "address": lambda one: one.address,
    "mode": lambda one: one.mode or "-",
    "streams": lambda one: str(one.streams),
    "in all": lambda one: str(one.streams_total),
    "up": lambda one: size(one.bytes_up),
    "down": lambda one: size(one.bytes_down),
    "age": lambda one: duration(one.age),
}
"""What is shown of a session on a server."""

HANDSHAKE_COLUMNS: dict[str, Callable[[Session], str]] = {
    "ECH": lambda session: session.ech or "-",
    "TCP": lambda session: _milliseconds(session.tcp_ms),
    "TLS": lambda session: _milliseconds(session.tls_ms),
    "WebSocket": lambda session: _milliseconds(session.websocket_ms),
}
"""How a session came about, where there is room for it."""

_TONES: dict[str, Tone] = {
    "up": "good",
    "degraded": "warning",
    "resolving": "working",
    "connecting": "working",
    "waiting": "bad",
}
_SOURCES = {
    "dns": "from the HTTPS record of {}",
    "retry": "handed over by {}",
    "option": "given with --ech-config",
    "bootstrap": "asked from {} without DNS",
}


def _state(facts: Facts) -> Row:
    more = ""
    if facts.cause is not None:
        more = facts.cause.line
        if facts.next_attempt_in is not None:
            more += f" (next attempt in {duration(facts.next_attempt_in)})"
    return Row("state", facts.phase, _TONES.get(facts.phase, ""), more)


_ROLES: dict[str, tuple[Tone, str]] = {
    "in use": ("good", "in use"),
    "standby": ("", "stands by"),
    "probation": ("working", "works again, and is not preferred yet"),
    "demoted": ("warning", "is used last"),
    "silent": ("warning", "does not answer"),
    "down": ("bad", "cannot be reached"),
}


def _server(server: Server) -> Row:
    tone, role = _ROLES.get(server.role, ("", server.role))
    trip = "" if server.rtt_ms is None else f", {server.rtt_ms:.0f} ms"
    why = f": {server.problem}" if server.problem is not None and server.role == "down" else ""
    if server.stops_after is not None:
        why += f": its connections stop after {amount(server.stops_after)}"
    if server.probe is not None:
        why += f"; probe: {_probe_words(server.probe)}"
    elif server.can_be_probed is False and server.role == "standby":
        why += "; cannot be probed"
    if server.unreached:
        why += f"; {server.unreached} connections went elsewhere ({server.unreached_why})"
    return Row("server", server.name, tone, f"({server.mode}{trip}) {role}{why}")


def _probe(probe: ProbeStatus) -> Row:
    tone: Tone = "good" if probe.outcome == "passed" else "warning"
    return Row("probe", _probe_words(probe), tone if probe.outcome != "failed" else "")


def _probe_words(probe: ProbeStatus) -> str:
    """What came of the last probe, and when."""
    ago = f"{duration(probe.age)} ago"
    if probe.outcome == "passed":
        return f"64 KiB there and back in {probe.passed_ms or 0:.0f} ms, {ago}"
    if probe.outcome == "stopped":
        return f"nothing came after {amount(probe.received)}, {ago}"
    return f"without an answer, {ago}"


def _ech(facts: Facts) -> Row:
    ech, state = facts.ech, facts.ech_state
    if ech is None:
        return Row("ECH", "off: the network sees the server's name", "warning") if state == "off" else Row("ECH", "-")
    words = [
        state,
        f"the network sees {ech.public_name}" if ech.public_name else "",
        _SOURCES.get(ech.source, ech.source).format(ech.origin),
        f"{duration(ech.age)} old" if ech.age is not None and ech.source != "option" else "",
        "stale" if ech.expires_in is not None and ech.expires_in < 0 else "",
        f"not refreshed: {ech.problem}" if ech.problem else "",
    ]
    return Row("ECH", ", ".join(filter(None, words)), "good" if state == "accepted" else "")


def _resolver(resolver: ResolverStatus) -> Row:
    if resolver.state == "ok":
        return Row("resolver", f"{resolver.url}  {resolver.ms or 0:.0f} ms, {resolver.http_version}")
    retry = "" if resolver.retry_in is None else f" (asked again in {duration(resolver.retry_in)})"
    return Row("resolver", f"{resolver.url}  {resolver.error}{retry}", "warning")


def _count(number: int | None) -> str:
    return "-" if number is None else str(number)


def _milliseconds(number: float | None) -> str:
    return "-" if number is None else f"{number:.1f} ms"
