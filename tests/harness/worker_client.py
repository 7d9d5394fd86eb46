"""WebSocket clients of a Worker that say anything: messages in simple mode, frames in multiplexed mode."""

import contextlib
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from .tunnel import TOKEN
from .worker import Worker

TIMEOUT = 20.0
DATA, UPDATE, PING, GO_AWAY = range(4)
SYN, ACK, FIN, RST = 1, 2, 4, 8
# What a client may send at first, in either mode.
INITIAL_WINDOW = 256 << 10


# What fits a message of our client.
LONGEST_PAYLOAD = 65_516


@dataclass(frozen=True)
class Frame:
    type: int
    flags: int
    stream: int
    value: int
    payload: bytes = b""


def frame(kind: int, flags: int, stream: int, value: int, payload: bytes = b"") -> bytes:
    return struct.pack(">BBHII", 0, kind, flags, stream, value) + payload


def data(stream: int, payload: bytes, flags: int = 0) -> bytes:
    return frame(DATA, flags, stream, len(payload), payload)


def extended(target: str, *, version: int = 1, command: int = 1, flags: int = 0) -> bytes:
    return bytes([2, version, command, flags]) + len(target).to_bytes(2, "big") + target.encode()


class Client:
    """Says any bytes, and hears frames."""

    def __init__(self, peer: ClientConnection) -> None:
        self.peer = peer
        self._buffer = b""

    def say(self, *pieces: bytes) -> None:
        for piece in pieces:
            self.peer.send(piece)

    def hear(self, timeout: float = TIMEOUT) -> Frame:
        while (length := self._length()) is None or len(self._buffer) < length:
            message = self.peer.recv(timeout=timeout)
            assert isinstance(message, bytes)
            self._buffer += message
        whole, self._buffer = self._buffer[:length], self._buffer[length:]
        _, kind, flags, stream, value = struct.unpack(">BBHII", whole[:12])
        return Frame(kind, flags, stream, value, whole[12:])

    def _length(self) -> int | None:
        if len(self._buffer) < 12:
            return None
        kind, value = self._buffer[1], int.from_bytes(self._buffer[8:12], "big")
        return 12 + value if kind == DATA else 12

    def hear_from(self, stream: int) -> Iterator[Frame]:
        """The frames of a stream up to its end, without ACK and window updates."""
        while True:
            found = self.hear()
            if found.stream != stream:
                continue
            if found.type == DATA or found.flags & (FIN | RST):
                yield found
            if found.flags & (FIN | RST):
                return

    def answer(self, stream: int) -> tuple[int, str]:
        """The status and the reason that an extended preamble gets."""
        for found in self.hear_from(stream):
            assert found.flags & RST == 0, found
            if found.type == DATA:
                assert found.payload[0] == 2
                return found.payload[1], found.payload[3 : 3 + found.payload[2]].decode()
        raise AssertionError("no answer")

    def fill(self, stream: int, credit: int, keep: int = 0) -> tuple[int, int]:
        """Sends what the windows allow, until nothing more is allowed for two seconds.

        keep: bytes of the window that are not used, at least. Returns how many bytes were sent, and what is left of the window.
        """
        sent = 0
        while True:
            length = min(credit - keep, LONGEST_PAYLOAD)
            if length > 0:
                self.say(data(stream, bytes(length)))
                credit, sent = credit - length, sent + length
                continue
            try:
                found = self.hear(2.0)
            except TimeoutError:
                return sent, credit
            if (found.type, found.stream) == (UPDATE, stream):
                credit += found.value

    def go_away(self) -> int:
        """The code with which the Worker ends the session."""
        code = -1
        with contextlib.suppress(ConnectionClosed):
            while True:
                found = self.hear()
                if found.type == GO_AWAY:
                    code = found.value
        return code


def dial(worker: Worker, path: str | None = None, token: str | None = TOKEN) -> ClientConnection:
    """A WebSocket, with nothing said yet."""
    return connect(
        f"ws://127.0.0.1:{worker.port}{worker.entry_path if path is None else path}",
        subprotocols=None if token is None else [token],  # type: ignore[list-item]
        compression=None,
        proxy=None,
        max_size=None,
        close_timeout=5,
    )


def said(peer: ClientConnection) -> str | bytes:
    return peer.recv(timeout=TIMEOUT)


def ended(peer: ClientConnection) -> tuple[int, list[str | bytes]]:
    """The code of the close, and what came before it."""
    heard: list[str | bytes] = []
    try:
        while True:
            heard.append(said(peer))
    except ConnectionClosed as error:
        return (error.rcvd.code if error.rcvd else 1006), heard


@contextlib.contextmanager
def session(worker: Worker) -> Iterator[Client]:
    with dial(worker) as peer:
        yield Client(peer)


@contextlib.contextmanager
def reluctant_target() -> Iterator[socket.socket]:
    """A listener whose connections have small buffers: what the test does not take of them waits in the Worker."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 << 10)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        listener.settimeout(TIMEOUT)
        yield listener


def accepted(listener: socket.socket) -> socket.socket:
    target, _ = listener.accept()
    target.settimeout(TIMEOUT)
    return target


def address(listener: socket.socket) -> str:
    return f"127.0.0.1:{listener.getsockname()[1]}"
