"""What a server carries for its clients, by token and by session. Times are seconds, sizes bytes; up is from clients to
targets."""

from __future__ import annotations

import msgspec

__all__ = ["SESSIONS_MAX", "ServedSession", "TokenStatus"]

SESSIONS_MAX = 1000
"""Sessions that are listed: those that have carried the most."""


class TokenStatus(msgspec.Struct, frozen=True):
    """What one token carries."""

    label: str
    """Never the token itself."""
    sessions: int
    sessions_total: int
    bytes_up: int
    bytes_down: int


class ServedSession(msgspec.Struct, frozen=True):
    """One session, from the answer to its upgrade on."""

    session: int
    """Its number, which its log lines have too."""
    token: str
    """The label of its token."""
    address: str
    """The client's address and port."""
    mode: str | None
    """yamux or simple; None while the client has said nothing."""
    streams: int
    streams_total: int
    bytes_up: int
    bytes_down: int
    age: float
