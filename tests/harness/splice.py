"""Two programs that both connect, joined: each to a port of its own."""

import socket
import threading
from types import TracebackType
from typing import Self

TIMEOUT = 60.0


class Splice:
    """Takes one connection on each of two ports, and passes everything between them."""

    def __init__(self) -> None:
        self._listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
        self.ports = tuple(int(each.getsockname()[1]) for each in self._listeners)
        self._threads = [threading.Thread(target=self._run, daemon=True)]
        self._threads[0].start()

    def _run(self) -> None:
        try:
            ends = []
            for listener in self._listeners:
                listener.settimeout(TIMEOUT)
                ends.append(listener.accept()[0])
        except OSError:
            return
        with ends[0], ends[1]:
            other = threading.Thread(target=_pass, args=(ends[1], ends[0]), daemon=True)
            other.start()
            _pass(ends[0], ends[1])
            other.join(TIMEOUT)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for listener in self._listeners:
            listener.close()
        self._threads[0].join(TIMEOUT)


def _pass(source: socket.socket, sink: socket.socket) -> None:
    source.settimeout(TIMEOUT)
    try:
        while piece := source.recv(1 << 16):
            sink.sendall(piece)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        for end in (source, sink):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue
