"""A TLS peer that announces a record size limit (RFC 8449), in front of either end: tlslite-ng speaks the announcing side, Python's
ssl the other one, and between them bytes are passed on as they come."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import select
import socket
import ssl
import threading
import warnings
from typing import TYPE_CHECKING, Any, Literal, Self

from .requirements import missing
from .tunnel import SERVER_NAME

if TYPE_CHECKING:
    from types import TracebackType

    from .tunnel import Site

TIMEOUT = 60.0


def needs_tlslite() -> None:
    if importlib.util.find_spec("tlslite") is None:
        missing("tlslite-ng is not installed: `make chaos` installs it")
    with warnings.catch_warnings():
        # It uses modules of the standard library that are deprecated.
        warnings.simplefilter("ignore", DeprecationWarning)
        importlib.import_module("tlslite.api")


class SmallRecords:
    """A port before the server on another port; ``towards`` is the end that meets the peer with the limit."""

    def __init__(self, site: Site, server: int, towards: Literal["server", "client"], limit: int) -> None:
        """limit: in bytes, of the plaintext with its content type, from 64 to 16,385."""
        self._site = site
        self._server = server
        self._towards = towards
        self._limit = limit
        self.failures: list[str] = []
        self._fronts: list[Any] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._sockets: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                accepted, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(accepted,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, accepted: socket.socket) -> None:
        from tlslite.errors import TLSError

        try:
            onward = socket.create_connection(("127.0.0.1", self._server), timeout=TIMEOUT)
        except OSError:
            accepted.close()
            return
        accepted.settimeout(TIMEOUT)
        with contextlib.ExitStack() as held:
            # The ssl module takes a socket over; a duplicate can still end the connection.
            ends = [held.enter_context(each.dup()) for each in (accepted, onward)]
            self._sockets += ends
            for each in (accepted, onward):
                held.callback(each.close)
            try:
                if self._towards == "server":
                    front, back = self._ssl_server(held, accepted), self._announcing_client(onward)
                else:
                    front, back = self._announcing_server(accepted), self._ssl_client(held, onward)
            except (TLSError, OSError) as error:
                self.failures.append(f"handshake: {error!r}")
                return
            self._fronts.append(front)
            other = threading.Thread(target=self._pass, args=(back, front, ends), daemon=True)
            other.start()
            self._pass(front, back, ends)
            other.join(TIMEOUT)

    def to_client(self, data: bytes) -> None:
        """Sends something to the client as if the server had, on the connection that was made last."""
        self._fronts[-1].sendall(data)

    def _pass(self, source: Any, sink: Any, ends: list[socket.socket]) -> None:
        """Passes on what comes, until either end has ended."""
        from tlslite.errors import TLSAbruptCloseError, TLSClosedConnectionError, TLSError

        try:
            while data := source.recv(1 << 16):
                sink.sendall(bytes(data))
        except (TLSAbruptCloseError, TLSClosedConnectionError, ssl.SSLZeroReturnError, ssl.SSLEOFError):
            pass
        except (TLSError, ssl.SSLError) as error:
            self.failures.append(repr(error))
        except OSError:
            pass
        for each in ends:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def _settings(self) -> Any:
        from tlslite.handshakesettings import HandshakeSettings

        settings = HandshakeSettings()
        settings.minVersion = settings.maxVersion = (3, 4)
        settings.record_size_limit = self._limit
        settings.cipherNames = ["aes128gcm"]
        settings.keyShares = ["x25519"]
        settings.eccCurves = ["x25519", "secp256r1"]
        settings.dhGroups = []
        settings.ticket_count = 0
        return settings

    def _announcing_client(self, connection: socket.socket) -> Any:
        from tlslite.api import TLSConnection

        tls = TLSConnection(connection)
        tls.handshakeClientCert(settings=self._settings(), serverName=SERVER_NAME, alpn=[b"http/1.1"])
        return tls

    def _announcing_server(self, connection: socket.socket) -> Any:
        from tlslite.api import TLSConnection, X509CertChain, parsePEMKey

        certificate = self._site.inner
        chain = X509CertChain()
        chain.parsePemList(certificate.chain.read_text())
        key = parsePEMKey(certificate.key.read_text(), private=True)
        tls = TLSConnection(connection)
        tls.handshakeServer(certChain=chain, privateKey=key, settings=self._settings(), alpn=[b"http/1.1"])
        return tls

    def _ssl_server(self, held: contextlib.ExitStack, connection: socket.socket) -> _Shared:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self._site.inner.chain, self._site.inner.key)
        context.set_alpn_protocols(["http/1.1"])
        return _Shared(held.enter_context(context.wrap_socket(connection, server_side=True)))

    def _ssl_client(self, held: contextlib.ExitStack, connection: socket.socket) -> _Shared:
        context = ssl.create_default_context(cafile=str(self._site.authority.path))
        context.set_alpn_protocols(["http/1.1"])
        return _Shared(held.enter_context(context.wrap_socket(connection, server_hostname=SERVER_NAME)))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for each in self._sockets:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(20)


class _Shared:
    """A connection of Python's ssl that one thread reads and another one writes: OpenSSL allows one call at a time."""

    def __init__(self, tls: ssl.SSLSocket) -> None:
        self._tls = tls
        self._lock = threading.Lock()
        tls.setblocking(False)

    def recv(self, size: int) -> bytes:
        while True:
            with self._lock, contextlib.suppress(ssl.SSLWantReadError):
                return self._tls.recv(size)
            self._wait(select.select([self._tls], [], [], TIMEOUT)[0])

    def sendall(self, data: bytes) -> None:
        left = memoryview(data)
        while left:
            with self._lock, contextlib.suppress(ssl.SSLWantWriteError):
                left = left[self._tls.send(left) :]
                continue
            self._wait(select.select([], [self._tls], [], TIMEOUT)[1])

    @staticmethod
    def _wait(ready: list[Any]) -> None:
        if not ready:
            raise TimeoutError
