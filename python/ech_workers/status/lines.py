"""Single lines about the tunnel, and figures written for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ech_workers import _native

__all__ = ["duration", "session_up", "size"]


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
