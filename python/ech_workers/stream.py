"""The socket of an open stream, and what it raises when the stream ended before its data had."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Any

from ech_workers.errors import StreamReset
from ech_workers.waiting import await_opening

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterable
    from typing import SupportsIndex

    from typing_extensions import Buffer

    from ech_workers._native import Engine, StreamEnd

__all__ = ["StreamSocket", "open_stream", "reset"]

_REASONS = {
    "reset": ("the other end reset the stream: the target broke off, or the server did", "stream-reset"),
    "session-lost": ("the session was lost before the stream's data had ended", "session-lost"),
    "idle": ("the stream was ended: no byte went either way for too long", "stream-idle"),
}


def reset(target: tuple[str, int], end: StreamEnd) -> StreamReset | None:
    """Why there is no more to read, if the data has not ended."""
    told = _REASONS.get(end.reason or "")
    if told is None:
        return None
    host, port = target
    return StreamReset(f"{host}:{port}: {told[0]}", code=told[1])


def open_stream(engine: Engine, host: str, port: int, timeout: float | None = None) -> StreamSocket:
    """Opens a stream, and waits for it for ``timeout`` seconds at most (None: the engine's ``open_timeout``).

    Raises TunnelError, and ValueError for a target that cannot be.
    """
    descriptor, end = await_opening(engine, host, port, timeout).result()
    return StreamSocket((host, port), descriptor, end)


class StreamSocket(socket.socket):
    """A connected socket whose other end is a stream of the tunnel.

    Below it is one end of a socket pair; it behaves like the TCP socket that programs expect: ``getpeername`` is the
    target, TCP options, which have no meaning here, are accepted, and reading raises StreamReset, which is a
    ConnectionResetError, when the stream was reset or its session was lost.
    """

    def __init__(self, target: tuple[str, int], descriptor: int, end: StreamEnd) -> None:
        """Owns the descriptor from then on."""
        super().__init__(fileno=descriptor)
        self.target = target
        """The target as it was asked for."""
        self.end = end
        """How the stream ended, once it has."""

    def __repr__(self) -> str:
        host, port = self.target
        return f"<StreamSocket to {host}:{port}{', closed' if self.fileno() < 0 else ''}>"

    def getpeername(self) -> tuple[str, int]:
        """The target as it was asked for."""
        super().getpeername()  # raises OSError when the stream has ended, as a TCP socket does
        return self.target

    def setsockopt(self, level: int, optname: int, value: Any, *optlen: Any) -> None:
        if level != socket.IPPROTO_TCP:
            super().setsockopt(level, optname, value, *optlen)

    def getsockopt(self, level: int, optname: int, *buflen: Any) -> Any:
        """As socket.getsockopt. TCP options are all 0."""
        if level != socket.IPPROTO_TCP:
            return super().getsockopt(level, optname, *buflen)
        return bytes(buflen[0]) if buflen else 0

    def start_tls(self, context: ssl.SSLContext, server_hostname: str | None = None) -> ssl.SSLSocket:
        """TLS on top of the stream; this socket is used up. Raises OSError (ssl.SSLError among them).

        As ``context.wrap_socket``, and it says what kind of end the stream comes to: reading raises StreamReset where
        the stream was reset or its session lost.
        """
        # Only here: most streams are none of TLS, and the module is large.
        from ech_workers.tls import start_tls

        return start_tls(self, context, self.target[0] if server_hostname is None else server_hostname)

    def dup(self) -> StreamSocket:
        """Another socket for the same stream, with the same timeout."""
        copy = StreamSocket(self.target, os.dup(self.fileno()), self.end)
        copy.settimeout(self.gettimeout())
        return copy

    def recv(self, bufsize: int, flags: int = 0, /) -> bytes:
        try:
            data = super().recv(bufsize, flags)
        except ConnectionResetError as error:
            raise self._why(error) from None
        if not data and bufsize:
            self._check_end()
        return data

    def recv_into(self, buffer: Buffer, nbytes: int = 0, flags: int = 0) -> int:
        try:
            count = super().recv_into(buffer, nbytes, flags)
        except ConnectionResetError as error:
            raise self._why(error) from None
        if not count and (nbytes or memoryview(buffer).nbytes):
            self._check_end()
        return count

    def recvfrom(self, bufsize: int, flags: int = 0, /) -> tuple[bytes, Any]:
        try:
            data, address = super().recvfrom(bufsize, flags)
        except ConnectionResetError as error:
            raise self._why(error) from None
        if not data and bufsize:
            self._check_end()
        return data, address

    def recvfrom_into(self, buffer: Buffer, nbytes: int = 0, flags: int = 0) -> tuple[int, Any]:
        try:
            count, address = super().recvfrom_into(buffer, nbytes, flags)
        except ConnectionResetError as error:
            raise self._why(error) from None
        if not count and (nbytes or memoryview(buffer).nbytes):
            self._check_end()
        return count, address

    def recvmsg(
        self, bufsize: int, ancbufsize: int = 0, flags: int = 0, /
    ) -> tuple[bytes, list[tuple[int, int, bytes]], int, Any]:
        try:
            received = super().recvmsg(bufsize, ancbufsize, flags)
        except ConnectionResetError as error:
            raise self._why(error) from None
        if not received[0] and bufsize:
            self._check_end()
        return received

    def recvmsg_into(
        self, buffers: Iterable[Buffer], ancbufsize: int = 0, flags: int = 0, /
    ) -> tuple[int, list[tuple[int, int, bytes]], int, Any]:
        spaces = list(buffers)
        try:
            received = super().recvmsg_into(spaces, ancbufsize, flags)
        except ConnectionResetError as error:
            raise self._why(error) from None
        if not received[0] and any(memoryview(space).nbytes for space in spaces):
            self._check_end()
        return received

    def _why(self, error: ConnectionResetError) -> ConnectionResetError:
        """The socket pair's own reset says that the data has not ended; why not is known here."""
        return reset(self.target, self.end) or error

    def _check_end(self) -> None:
        error = reset(self.target, self.end)
        if error is not None:
            raise error

    def __reduce_ex__(self, protocol: SupportsIndex, /) -> Any:
        raise TypeError("a stream's socket cannot be pickled: it belongs to its tunnel's process")
