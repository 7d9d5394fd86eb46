"""The connections that are open, for whoever shows them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import msgspec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ech_workers._native import ConnectionSnapshot
    from ech_workers.config import ClientConfig

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

    @property
    def config(self) -> ClientConfig: ...
    def connections(self) -> Sequence[ConnectionSnapshot]: ...


def carried(tunnel: Carrying, most: int | None = SHOWN_MAX) -> list[Carried]:
    """The open connections, the oldest first; of many the youngest ``most``. Raises EngineClosed."""
    servers = tunnel.config.upstreams
    found = tunnel.connections()
    return [
        Carried(
            one.id,
            one.target,
            one.protocol,
            one.way,
            # After a reload there may be fewer servers than an old session knew.
            servers[one.upstream].name if one.upstream is not None and one.upstream < len(servers) else None,
            one.session,
            one.bytes_up,
            one.bytes_down,
            one.age,
        )
        for one in (found if most is None else found[-most:])
    ]
