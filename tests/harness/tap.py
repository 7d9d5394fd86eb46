"""A listener that records every byte a client sends, and passes it on (or does not)."""

import contextlib
import socket
import threading
from types import TracebackType
from typing import Self

from .secrecy import names_the_server


class Tap:
    """Records what arrives on a free loopback port. With `upstream` it is a pipe to that address; without, it answers nothing and closes after the first bytes."""

    def __init__(
        self, upstream: tuple[str, int] | None = None, host: str = "127.0.0.1", *, hides_name: bool = True
    ) -> None:
        """hides_name: what clients send must not name the server; looked at in the end."""
        self.upstream = upstream
        self._hides_name = hides_name
        self.connections = 0
        self.sent: list[bytearray] = []
        self.cut = threading.Event()
        self.thawed = threading.Event()
        """Not set: the path is frozen, nothing passes either way and nothing ends."""
        self.thawed.set()
        self.limit: int | None = None
        """So many bytes of a connection come back, and then nothing more, though it does not end."""
        self._sockets: list[socket.socket] = []
        self._forgotten: set[socket.socket] = set()
        self._over = threading.Event()
        self._listener = socket.create_server(
            (host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=256
        )
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        return int(self._listener.getsockname()[1])

    @property
    def everything(self) -> bytes:
        """All that clients have sent, over all connections."""
        return b"\0".join(bytes(sent) for sent in self.sent)

    def break_connections(self) -> None:
        """Ends every connection that runs now; new ones are taken."""
        for each in list(self._sockets):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def forget_connections(self) -> None:
        """What comes over the connections that there are is dropped from now on, their ends too, and nobody is told; new ones
        are taken."""
        self._forgotten.update(self._sockets)

    def stop(self) -> None:
        self.thawed.set()
        self._over.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.break_connections()
        self._thread.join(10)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        if error is None and self._hides_name:
            assert not any(names_the_server(bytes(sent)) for sent in self.sent), "the server's name is sent in clear"

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            record = bytearray()
            self.sent.append(record)
            threading.Thread(target=self._serve, args=(client, record), daemon=True).start()

    def _serve(self, client: socket.socket, record: bytearray) -> None:
        with client:
            self._sockets.append(client)
            if self.upstream is None:
                client.settimeout(5)
                with contextlib.suppress(OSError):
                    record += client.recv(65536)
                return
            try:
                server = socket.create_connection(self.upstream, timeout=5)
            except OSError:
                return
            with server:
                server.settimeout(None)
                self._sockets.append(server)
                back = threading.Thread(target=self._pump, args=(server, client, None), daemon=True)
                back.start()
                self._pump(client, server, record)
                back.join(60)

    def _pump(self, source: socket.socket, target: socket.socket, record: bytearray | None) -> None:
        came_back = 0
        with contextlib.suppress(OSError):
            while piece := source.recv(65536):
                if record is not None:
                    record += piece
                elif self.limit is not None:
                    piece = piece[: max(0, self.limit - came_back)]
                    came_back += len(piece)
                self.thawed.wait()
                if source in self._forgotten:
                    continue
                target.sendall(piece)
        if source in self._forgotten:
            self._over.wait()
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)
