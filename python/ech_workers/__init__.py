"""Traffic through WebSocket sessions over TLS 1.3 with Encrypted Client Hello.

    from ech_workers import Tunnel

    with Tunnel("tunnel.example/ws", token="...") as tunnel:
        connection = tunnel.create_connection(("example.org", 80))

``ech_workers.aio`` has the same for asyncio. Every failure is a ``TunnelError``; see ``ech_workers.errors``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ech_workers.errors import (
    CertificateError,
    ConfigError,
    ConnectError,
    ConnectTimeout,
    EchError,
    EngineClosed,
    ListenError,
    ResolverError,
    ResolverTimeout,
    SessionError,
    SessionTimeout,
    StreamReset,
    TargetError,
    TargetTimeout,
    TlsError,
    TlsTimeout,
    TokenError,
    TunnelError,
    WebSocketError,
    WebSocketTimeout,
)

if TYPE_CHECKING:
    from ech_workers.config import ClientConfig
    from ech_workers.tunnel import Tunnel

__all__ = [
    "CertificateError",
    "ClientConfig",
    "ConfigError",
    "ConnectError",
    "ConnectTimeout",
    "EchError",
    "EngineClosed",
    "ListenError",
    "ResolverError",
    "ResolverTimeout",
    "SessionError",
    "SessionTimeout",
    "StreamReset",
    "TargetError",
    "TargetTimeout",
    "TlsError",
    "TlsTimeout",
    "TokenError",
    "Tunnel",
    "TunnelError",
    "WebSocketError",
    "WebSocketTimeout",
    "__version__",
]

__version__: str


def __getattr__(name: str) -> object:
    # On first use: a program that only reads errors, or the command line, pays for no more than it needs.
    if name == "Tunnel":
        from ech_workers.tunnel import Tunnel

        return Tunnel
    if name == "ClientConfig":
        from ech_workers.config import ClientConfig

        return ClientConfig
    if name == "__version__":
        from ech_workers import _native

        return _native.__version__
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
