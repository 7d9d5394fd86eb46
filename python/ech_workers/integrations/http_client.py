"""http.client through a tunnel."""

from __future__ import annotations

import http.client
import ssl
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import socket
    from collections.abc import Mapping

    from ech_workers.tunnel import Tunnel

__all__ = ["HTTPConnection", "HTTPSConnection"]


class HTTPConnection(http.client.HTTPConnection):
    """An http.client.HTTPConnection that connects through a tunnel, each time that it connects."""

    def __init__(self, tunnel: Tunnel, host: str, port: int | None = None, **options: Any) -> None:
        """options: those of http.client.HTTPConnection; ``timeout`` (seconds) is for the opening and stays set."""
        super().__init__(host, port, **options)
        self._through = tunnel

    def connect(self) -> None:
        """Raises TunnelError."""
        sys.audit("http.client.connect", self, self.host, self.port)
        self.sock: socket.socket = self._through.create_connection((self.host, self.port), self.timeout)

    def set_tunnel(self, host: str, port: int | None = None, headers: Mapping[str, str] | None = None) -> None:
        """A proxy behind the tunnel: not supported. Raises NotImplementedError."""
        raise NotImplementedError("the connection goes through the tunnel, not through another proxy")


class HTTPSConnection(HTTPConnection):
    """The same with TLS inside of the tunnel."""

    default_port = http.client.HTTPS_PORT

    def __init__(
        self,
        tunnel: Tunnel,
        host: str,
        port: int | None = None,
        *,
        context: ssl.SSLContext | None = None,
        **options: Any,
    ) -> None:
        """context: None is ssl.create_default_context()."""
        super().__init__(tunnel, host, port, **options)
        if context is None:
            context = ssl.create_default_context()
            context.set_alpn_protocols(["http/1.1"])
        self._tls = context

    def connect(self) -> None:
        """Raises TunnelError and ssl.SSLError."""
        sys.audit("http.client.connect", self, self.host, self.port)
        stream = self._through.create_connection((self.host, self.port), self.timeout)
        try:
            self.sock = stream.start_tls(self._tls, self.host)
        except BaseException:
            stream.close()
            raise
