"""An address beside the right one that accepts connections and does not lead to the server."""

import contextlib
import socket
import ssl
import struct
import threading
from types import TracebackType
from typing import Literal, Self

from .authority import Certificate

Kind = Literal["resets", "silent", "foreign", "passes"]


class BadAddress:
    """A listener on ``host`` and ``port``: it resets each connection, says nothing, presents a foreign certificate, or passes
    everything on to ``upstream`` until ``turn_silent``."""

    def __init__(
        self,
        host: str,
        port: int,
        kind: Kind,
        *,
        certificate: Certificate | None = None,
        upstream: tuple[str, int] | None = None,
    ) -> None:
        """Raises OSError when somebody else has the port there."""
        self.accepted = 0
        self._kind = kind
        self._upstream = upstream
        self._context: ssl.SSLContext | None = None
        if certificate is not None:
            self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._context.load_cert_chain(certificate.chain, certificate.key)
        self._held: list[socket.socket] = []
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.create_server((host, port), family=family, backlog=64)
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def turn_silent(self) -> None:
        """From now on nothing is answered, on new connections and on those that there are."""
        self._kind = "silent"

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(10)
        for each in self._held:
            # A thread may be reading from it.
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.accepted += 1
            if self._kind == "resets":
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                connection.close()
                continue
            self._held.append(connection)
            if self._kind == "foreign":
                threading.Thread(target=self._present, args=(connection,), daemon=True).start()
            elif self._kind == "passes" and self._upstream is not None:
                with contextlib.suppress(OSError):
                    server = socket.create_connection(self._upstream, timeout=20)
                    server.settimeout(None)
                    self._held.append(server)
                    for ends in ((connection, server), (server, connection)):
                        threading.Thread(target=self._pass_on, args=ends, daemon=True).start()

    def _present(self, connection: socket.socket) -> None:
        assert self._context is not None
        with contextlib.suppress(OSError):
            connection.settimeout(20)
            self._context.wrap_socket(connection, server_side=True).close()

    def _pass_on(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while piece := source.recv(65536):
                if self._kind == "passes":
                    target.sendall(piece)
