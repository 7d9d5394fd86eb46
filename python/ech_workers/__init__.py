"""Traffic through WebSocket sessions over TLS 1.3 with Encrypted Client Hello.

    from ech_workers import Tunnel

    with Tunnel("tunnel.example/ws", token="...") as tunnel:
        connection = tunnel.create_connection(("example.org", 80))

``ech_workers.aio`` has the same for asyncio. Every failure is a ``TunnelError``; see ``ech_workers.errors``.
"""

from __future__ import annotations

import sys
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
    from ech_workers.config import ClientConfig, ClientOptions, ServerConfig
    from ech_workers.server import TunnelServer
    from ech_workers.stream import StreamSocket
    from ech_workers.tunnel import Listener, Tunnel

__all__ = [
    "CertificateError",
    "ClientConfig",
    "ClientOptions",
    "ConfigError",
    "ConnectError",
    "ConnectTimeout",
    "EchError",
    "EngineClosed",
    "ListenError",
    "Listener",
    "ResolverError",
    "ResolverTimeout",
    "ServerConfig",
    "SessionError",
    "SessionTimeout",
    "StreamReset",
    "StreamSocket",
    "TargetError",
    "TargetTimeout",
    "TlsError",
    "TlsTimeout",
    "TokenError",
    "Tunnel",
    "TunnelError",
    "TunnelServer",
    "WebSocketError",
    "WebSocketTimeout",
    "__version__",
]

__version__: str

if "t" in getattr(sys, "abiflags", ""):
    raise ImportError("ech_workers does not support free-threaded Python yet: use the build with the GIL")

_LAZY = {
    "ClientConfig": "ech_workers.config",
    "ClientOptions": "ech_workers.config",
    "Listener": "ech_workers.tunnel",
    "ServerConfig": "ech_workers.config",
    "StreamSocket": "ech_workers.stream",
    "Tunnel": "ech_workers.tunnel",
    "TunnelServer": "ech_workers.server",
    "__version__": "ech_workers._native",
}


def __getattr__(name: str) -> object:
    # On first use: a program that only reads errors, or the command line, pays for no more than it needs.
    module = _LAZY.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(module), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
