"""The name that must not be seen in clear: not by the network, and not by programs that use the proxy's port."""

import base64
import contextlib
import socket
import weakref
from collections.abc import Callable
from typing import Any

SERVER_NAME = "hidden.ech-workers.test"

SPELLINGS = (
    SERVER_NAME.encode(),
    b"\x06hidden\x0bech-workers\x04test",
    SERVER_NAME.encode("utf-16-le"),
    base64.b64encode(SERVER_NAME.encode()).lower(),
)


def names_the_server(data: bytes) -> bool:
    """Whether the name is in it, in any of the ways in which it could be written."""
    lowered = data.lower()
    return any(spelling in lowered for spelling in SPELLINGS)


def heard(data: bytes) -> bytes:
    """What the proxy has answered, if it names nobody."""
    assert not names_the_server(data), f"the proxy names the server: {data!r}"
    return data


class Watch:
    """Looks at everything that sockets of the tests receive from a proxy's port, whoever reads it.

    What was seen is kept, since a thread that reads may have nobody who hears of an error.
    """

    def __init__(self) -> None:
        self._ports: dict[int, Callable[[], bool]] = {}
        self._ends: weakref.WeakKeyDictionary[socket.socket, bytes] = weakref.WeakKeyDictionary()
        self._seen: list[str] = []

    def port(self, port: int, is_open: Callable[[], bool]) -> None:
        """A proxy listens on this port as long as ``is_open`` says so."""
        self._ports[port] = is_open

    def begin(self) -> None:
        """From now on every ``socket.socket`` of this process is looked at."""
        recv, recv_into = socket.socket.recv, socket.socket.recv_into

        def watched_recv(connection: socket.socket, *arguments: Any) -> bytes:
            data = recv(connection, *arguments)
            self._look(connection, data)
            return data

        def watched_recv_into(connection: socket.socket, buffer: Any, *arguments: Any, **more: Any) -> int:
            count = recv_into(connection, buffer, *arguments, **more)
            self._look(connection, bytes(memoryview(buffer).cast("B")[:count]))
            return count

        socket.socket.recv = watched_recv  # type: ignore[assignment, method-assign]
        socket.socket.recv_into = watched_recv_into  # type: ignore[assignment, method-assign]

    def take(self) -> list[str]:
        """What has named the server since this was asked before."""
        seen, self._seen = self._seen, []
        return seen

    def _look(self, connection: socket.socket, data: bytes) -> None:
        if not data:
            return
        with contextlib.suppress(OSError):
            peer = connection.getpeername()
            if not isinstance(peer, tuple) or len(peer) < 2:
                return
            is_open = self._ports.get(peer[1])
            if is_open is None or not is_open():
                return
            # The name may come in two pieces.
            data = self._ends.get(connection, b"") + data
            named = names_the_server(data)
            self._ends[connection] = b"" if named else data[-64:]
            if named:
                self._seen.append(f"port {peer[1]}: {data[:2000]!r}")


WATCH = Watch()
