"""A client that keeps to the protocol's letter and nothing else: one TLS connection, upgraded with a token, and raw frames on it."""

import os
import socket
import ssl
import struct
from types import TracebackType
from typing import Self

from . import socks
from .tunnel import PATH, PUBLIC_NAME, TOKEN, Site

# yamux: types and flags of a frame.
DATA, WINDOW_UPDATE, PING, GO_AWAY = range(4)
SYN, ACK, FIN, RST = 1, 2, 4, 8

# WebSocket: opcodes.
BINARY, TEXT, WS_PING, WS_PONG = 2, 1, 9, 10


def frame(kind: int, flags: int, stream: int, length: int, payload: bytes = b"") -> bytes:
    """A yamux frame."""
    return struct.pack(">BBHII", 0, kind, flags, stream, length) + payload


def opening(stream: int, target: str, data: bytes = b"") -> bytes:
    """Opens a stream to host:port in the deployed form, with the first bytes for the target."""
    payload = f"{target}\n".encode() + data
    return frame(WINDOW_UPDATE, SYN, stream, 0) + frame(DATA, 0, stream, len(payload), payload)


class HostileClient:
    """A connection to the server; after `upgrade` whatever bytes the test wants to send."""

    def __init__(self, site: Site, port: int, *, source: str = "127.0.0.1", name: str = PUBLIC_NAME) -> None:
        context = ssl.create_default_context(cafile=str(site.authority.path))
        plain = socket.create_connection(("127.0.0.1", port), timeout=30, source_address=(source, 0))
        try:
            self.tls = context.wrap_socket(plain, server_hostname=name)
        except BaseException:
            plain.close()
            raise

    def upgrade(self, token: str = TOKEN) -> Self:
        self.tls.sendall(
            f"GET {PATH} HTTP/1.1\r\nHost: {PUBLIC_NAME}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
            f"Sec-WebSocket-Protocol: {token}\r\n\r\n".encode()
        )
        head = self.head()
        assert head.startswith(b"HTTP/1.1 101 "), head
        return self

    def head(self) -> bytes:
        """The head of an answer."""
        received = b""
        while not received.endswith(b"\r\n\r\n"):
            received += socks.exactly(self.tls, 1)
        return received

    def message(self, payload: bytes, opcode: int = BINARY) -> None:
        """Sends one whole WebSocket message."""
        key = os.urandom(4)
        length = len(payload)
        if length < 126:
            size = bytes([0x80 | length])
        elif length < 1 << 16:
            size = b"\xfe" + length.to_bytes(2, "big")
        else:
            size = b"\xff" + length.to_bytes(8, "big")
        number = int.from_bytes(payload, "big") ^ int.from_bytes((key * (length // 4 + 1))[:length], "big")
        self.tls.sendall(bytes([0x80 | opcode]) + size + key + number.to_bytes(length, "big"))

    def receive_until(self, wanted: bytes) -> bytes:
        """What comes up to and with ``wanted``."""
        received = b""
        while wanted not in received:
            part = self.tls.recv(1 << 16)
            assert part, received
            received += part
        return received

    def close(self) -> None:
        self.tls.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
