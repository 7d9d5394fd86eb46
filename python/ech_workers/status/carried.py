"""The connections that are open, for whoever shows them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import msgspec

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ech_workers._native import ConnectionSnapshot

__all__ = ["SHOWN_MAX", "Carried", "Carrying", "carried"]

SHOWN_MAX = 100
"""On the page: the youngest."""


class Carried(msgspec.Struct, frozen=True):
    """One of them. Times are seconds, sizes bytes; up is from the program to the target."""

    id: int
    target: str
    """host:port."""
    protocol: str
    """socks5, connect, http (a forwarded request), or api (a Python program's stream)."""
    way: str
    """tunnel, direct, or waiting (for a session, or for the target)."""
    server: str | None
    """The name of the server that carries it."""
    session: int | None
    bytes_up: int
    bytes_down: int
    age: float


class Carrying(Protocol):
    """What is looked at of a ``Tunnel``."""

    def server_names(self) -> Mapping[int, str]: ...
    def connections(self) -> Sequence[ConnectionSnapshot]: ...


def carried(tunnel: Carrying, most: int | None = SHOWN_MAX) -> list[Carried]:
    """The open connections, the oldest first; of many the youngest ``most``. Raises EngineClosed."""
    servers = tunnel.server_names()
    found = tunnel.connections()
    return [
        Carried(
            one.id,
            one.target,
            one.protocol,
            one.way,
            # An old session's server may be gone since a reload.
            None if one.upstream is None else servers.get(one.upstream),
            one.session,
            one.bytes_up,
            one.bytes_down,
            one.age,
        )
        for one in (found if most is None else found[-most:])
    ]
