"""What a server carries for its clients, by token. Sizes are bytes; up is from clients to
targets."""

from __future__ import annotations

import msgspec

__all__ = ["TokenStatus"]


class TokenStatus(msgspec.Struct, frozen=True):
    """What one token carries."""

    label: str
    """Never the token itself."""
    sessions: int
    sessions_total: int
    bytes_up: int
    bytes_down: int
