"""A small SOCKS5 client (RFC 1928), to say things that curl does not."""

import socket

from .secrecy import heard

OK = 0


class ReplyError(Exception):
    """The proxy answered with another reply than success."""

    def __init__(self, reply: int) -> None:
        super().__init__(f"SOCKS5 reply {reply}")
        self.reply = reply


def connect(proxy: tuple[str, int], host: str, port: int, timeout: float = 20.0) -> socket.socket:
    """A connection to host:port through the proxy, the name passed on unresolved."""
    connection = socket.create_connection(proxy, timeout=timeout)
    try:
        connection.sendall(b"\x05\x01\x00")
        assert exactly(connection, 2) == b"\x05\x00"
        name = host.encode()
        connection.sendall(b"\x05\x01\x00\x03" + bytes([len(name)]) + name + port.to_bytes(2, "big"))
        reply = exactly(connection, 4)
        assert reply[0] == 5, reply
        if reply[1] != OK:
            raise ReplyError(reply[1])
        size = exactly(connection, 1)[0] if reply[3] == 3 else {1: 4, 4: 16}[reply[3]]
        exactly(connection, size + 2)
    except BaseException:
        connection.close()
        raise
    return connection


def exactly(connection: socket.socket, size: int) -> bytes:
    """Reads `size` bytes; EOFError if the connection ends before."""
    received = b""
    while len(received) < size:
        piece = connection.recv(size - len(received))
        if not piece:
            raise EOFError(f"{len(received)} of {size} bytes")
        received += piece
    return heard(received)


def until_end(connection: socket.socket) -> bytes:
    received = bytearray()
    while piece := connection.recv(1 << 20):
        received += piece
    return heard(bytes(received))
