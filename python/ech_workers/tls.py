"""TLS on top of a stream, which keeps what kind of end the stream comes to."""

from __future__ import annotations

import ssl
import threading
from typing import TYPE_CHECKING, Any

from ech_workers.stream import reset

if TYPE_CHECKING:
    from ech_workers._native import StreamEnd
    from ech_workers.errors import StreamReset
    from ech_workers.stream import StreamSocket

__all__ = ["start_tls"]


class _TlsSocket(ssl.SSLSocket):
    """As ssl.SSLSocket, but that an end which is not the end of the data is an error."""

    below: tuple[tuple[str, int], StreamEnd] | None = None

    def read(self, len: int = 1024, buffer: bytearray | None = None) -> Any:  # type: ignore[override]  # noqa: A002
        try:
            received = super().read(len, buffer)
        except ConnectionResetError as error:
            raise self._reset() or error from None
        if not received and len and (told := self._reset()) is not None:
            raise told
        return received

    def _reset(self) -> StreamReset | None:
        return None if self.below is None else reset(*self.below)


# A context makes sockets of one class at a time (SSLContext.sslsocket_class).
_tls = threading.Lock()


def start_tls(stream: StreamSocket, context: ssl.SSLContext, server_hostname: str) -> ssl.SSLSocket:
    """TLS on top of a stream, whose socket is used up. Raises OSError (ssl.SSLError among them)."""
    with _tls:
        former = context.sslsocket_class
        context.sslsocket_class = _TlsSocket
        try:
            # The handshake, which takes time, is done outside of the lock.
            secure = context.wrap_socket(stream, server_hostname=server_hostname, do_handshake_on_connect=False)
        finally:
            context.sslsocket_class = former
    if isinstance(secure, _TlsSocket):
        secure.below = (stream.target, stream.end)
    try:
        secure.do_handshake()
    except BaseException:
        secure.close()
        raise
    return secure
