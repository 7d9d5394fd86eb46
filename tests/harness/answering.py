"""A web server that answers what it is told and keeps its connections open, whatever the request says."""

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

from .authority import Certificate

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Answering:
    """`answer` makes the answer to a request head; None closes the connection instead. `received` has all bytes that came, a
    connection each. With a certificate it speaks TLS."""

    def __init__(
        self, answer: Callable[[bytes], bytes | None] = lambda head: OK, certificate: Certificate | None = None
    ) -> None:
        self.answer = answer
        self.tls: ssl.SSLContext | None = None
        if certificate is not None:
            self.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self.tls.load_cert_chain(certificate.chain, certificate.key)
            self.tls.set_alpn_protocols(["http/1.1"])
        self.received: list[bytearray] = []
        self.connections: list[socket.socket] = []
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = int(self.listener.getsockname()[1])
        self.threads = [threading.Thread(target=self._accept)]
        self.threads[0].start()

    @property
    def bytes(self) -> bytes:
        """All that came, over all connections."""
        return b"".join(self.received)

    def _accept(self) -> None:
        # The listener's end ends the loop.
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self.listener.accept()
                record = bytearray()
                self.received.append(record)
                self.connections.append(connection)
                thread = threading.Thread(target=self._serve, args=(connection, record))
                self.threads.append(thread)
                thread.start()

    def _serve(self, connection: socket.socket, record: bytearray) -> None:
        done = 0
        with contextlib.suppress(OSError), connection:
            if self.tls is not None:
                connection = self.tls.wrap_socket(connection, server_side=True)
                self.connections.append(connection)
            while piece := connection.recv(1 << 16):
                record += piece
                while (end := record.find(b"\r\n\r\n", done)) >= 0:
                    head, done = bytes(record[done:end]), end + 4
                    answer = self.answer(head)
                    if answer is None:
                        return
                    connection.sendall(answer)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for each in [self.listener, *self.connections]:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        for thread in self.threads:
            thread.join(10)
