"""An HTTPS server that records what its clients send, in their order: each ClientHello, HTTP/1.1 heads byte by byte, HTTP/2 frames and header lists."""

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self, TypeAlias

import h2.config
import h2.connection
import h2.events

from .authority import Certificate

Fields: TypeAlias = list[tuple[str, str]]
Page: TypeAlias = tuple[str, bytes]
"""Content type and body."""

TIMEOUT = 20.0


@dataclass
class Recorded:
    """One connection."""

    hello: bytes
    """The first TLS record."""
    alpn: str = ""
    resumed: bool = False
    heads: list[bytes] = field(default_factory=list)
    """HTTP/1.1 requests up to their empty line."""
    requests: list[Fields] = field(default_factory=list)
    """HTTP/2 requests: header fields, those with a colon too."""
    frames: list["Frame"] = field(default_factory=list)
    """HTTP/2: all that was sent."""
    records: list[int] = field(default_factory=list)
    """HTTP/2: how long the TLS records were whose contents these are."""


@dataclass(frozen=True)
class Frame:
    """One HTTP/2 frame (RFC 9113 section 4.1)."""

    kind: int
    flags: int
    stream: int
    payload: bytes


class Recorder:
    """Answers each request with what `page` says to its path and body, on a free loopback port."""

    def __init__(
        self,
        certificate: Certificate,
        *,
        alpn: tuple[str, ...],
        page: Callable[[str, bytes], Page],
        tickets: int = 0,
        host: str = "127.0.0.1",
    ) -> None:
        self.connections: list[Recorded] = []
        self._page = page
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(certificate.chain, certificate.key)
        self._context.set_alpn_protocols(list(alpn))
        self._context.num_tickets = tickets
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.create_server((host, 0), family=family)
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        return int(self._listener.getsockname()[1])

    @property
    def heads(self) -> list[bytes]:
        return [head for connection in list(self.connections) for head in connection.heads]

    @property
    def requests(self) -> list[Fields]:
        return [request for connection in list(self.connections) for request in connection.requests]

    def stop(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(10)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        client.settimeout(TIMEOUT)
        # Clients that go away, or do not trust the certificate, are part of the tests.
        with client, contextlib.suppress(OSError):
            recorded = Recorded(_first_record(client))
            self.connections.append(recorded)
            with self._context.wrap_socket(client, server_side=True) as tls:
                recorded.alpn = tls.selected_alpn_protocol() or ""
                recorded.resumed = bool(tls.session_reused)
                if recorded.alpn == "h2":
                    self._serve_http2(tls, recorded)
                else:
                    self._serve_http1(tls, recorded)

    def _serve_http1(self, tls: ssl.SSLSocket, recorded: Recorded) -> None:
        received = b""
        while True:
            while b"\r\n\r\n" not in received:
                piece = tls.recv(65536)
                if not piece:
                    return
                received += piece
            head, _, received = received.partition(b"\r\n\r\n")
            recorded.heads.append(head + b"\r\n\r\n")
            fields = dict(head_fields(head))
            length = int(fields.get("Content-Length", "0"))
            while len(received) < length:
                received += tls.recv(65536)
            body, received = received[:length], received[length:]
            if "Upgrade" in fields:
                tls.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                return
            kind, content = self._page(head.split(b" ", 2)[1].decode("ascii"), body)
            tls.sendall(
                f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {len(content)}\r\n\r\n".encode() + content
            )

    def _serve_http2(self, tls: ssl.SSLSocket, recorded: Recorded) -> None:
        connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding="utf-8"))
        connection.initiate_connection()
        tls.sendall(connection.data_to_send())
        bodies: dict[int, bytes] = {}
        paths: dict[int, str] = {}
        sent = b""
        # No more than one TLS record at a time.
        while piece := tls.recv(65536):
            recorded.records.append(len(piece))
            sent += piece
            recorded.frames[:] = frames(sent)
            for event in connection.receive_data(piece):
                match event:
                    case h2.events.RequestReceived():
                        fields = [(str(name), str(value)) for name, value in event.headers]
                        recorded.requests.append(fields)
                        paths[event.stream_id], bodies[event.stream_id] = dict(fields)[":path"], b""
                    case h2.events.DataReceived():
                        bodies[event.stream_id] += event.data
                    case h2.events.StreamEnded():
                        stream = event.stream_id
                        kind, content = self._page(paths[stream], bodies[stream])
                        answer = [(":status", "200"), ("content-type", kind), ("content-length", str(len(content)))]
                        connection.send_headers(stream, answer)
                        frame = connection.max_outbound_frame_size
                        for start in range(0, len(content), frame):
                            connection.send_data(stream, content[start : start + frame])
                        connection.end_stream(stream)
            tls.sendall(connection.data_to_send())


def frames(sent: bytes) -> list[Frame]:
    """The whole frames behind an HTTP/2 connection preface."""
    found, at = [], len(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
    while at + 9 <= len(sent):
        end = at + 9 + int.from_bytes(sent[at : at + 3], "big")
        if end > len(sent):
            break
        stream = int.from_bytes(sent[at + 5 : at + 9], "big")
        found.append(Frame(sent[at + 3], sent[at + 4], stream, sent[at + 9 : end]))
        at = end
    return found


def head_fields(head: bytes) -> Fields:
    """The header fields of an HTTP/1.1 head, in their order and spelling."""
    lines = head.decode("latin-1").split("\r\n")[1:]
    return [(name, value.strip()) for name, _, value in (line.partition(":") for line in lines if line)]


def _first_record(client: socket.socket) -> bytes:
    """The first TLS record, which stays to be read."""
    wanted = 5
    while True:
        seen = client.recv(wanted, socket.MSG_PEEK | socket.MSG_WAITALL)
        if len(seen) < wanted:
            raise ConnectionError("no TLS record")
        if wanted > 5:
            return seen
        wanted += int.from_bytes(seen[3:5], "big")
