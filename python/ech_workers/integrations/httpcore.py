"""Network backends for httpcore: how its connections are made through a tunnel."""

# ruff: noqa: ASYNC109 (httpcore hands timeouts over)

from __future__ import annotations

import asyncio
import contextlib
import select
import ssl
import time
from typing import TYPE_CHECKING, Any

from ech_workers.integrations import missing

try:
    import httpcore
except ImportError as error:
    raise missing(error, "httpx") from None

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ech_workers import aio
    from ech_workers.stream import StreamSocket
    from ech_workers.tunnel import Tunnel

__all__ = ["AsyncTunnelBackend", "TunnelBackend"]


@contextlib.contextmanager
def _mapped(timeout: type[Exception], error: type[Exception]) -> Iterator[None]:
    try:
        yield
    except TimeoutError as caught:
        raise timeout(str(caught)) from caught
    except OSError as caught:
        raise error(str(caught)) from caught


class TunnelBackend(httpcore.NetworkBackend):
    """For httpcore.ConnectionPool(network_backend=...)."""

    def __init__(self, tunnel: Tunnel) -> None:
        self._through = tunnel

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Any = None,
    ) -> httpcore.NetworkStream:
        """timeout: seconds. local_address and socket_options have no meaning here. Raises httpcore.ConnectError and
        httpcore.ConnectTimeout."""
        with _mapped(httpcore.ConnectTimeout, httpcore.ConnectError):
            return _Stream(self._through.create_connection((host, port), timeout))

    def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Any = None
    ) -> httpcore.NetworkStream:
        raise httpcore.ConnectError(f"{path}: a local socket is not behind the tunnel")

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


class _Stream(httpcore.NetworkStream):
    def __init__(self, connection: StreamSocket | ssl.SSLSocket) -> None:
        self._connection = connection

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        with _mapped(httpcore.ReadTimeout, httpcore.ReadError):
            self._connection.settimeout(timeout)
            return self._connection.recv(max_bytes)

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        if buffer:
            with _mapped(httpcore.WriteTimeout, httpcore.WriteError):
                self._connection.settimeout(timeout)
                self._connection.sendall(buffer)

    def close(self) -> None:
        self._connection.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        if isinstance(self._connection, ssl.SSLSocket):
            raise httpcore.ConnectError("TLS inside of TLS is not supported")
        with _mapped(httpcore.ConnectTimeout, httpcore.ConnectError):
            try:
                self._connection.settimeout(timeout)
                return _Stream(self._connection.start_tls(ssl_context, server_hostname))
            except BaseException:
                self.close()
                raise

    def get_extra_info(self, info: str) -> Any:
        if info == "ssl_object" and isinstance(self._connection, ssl.SSLSocket):
            return self._connection
        if info == "server_addr":
            return self._connection.getpeername()
        if info == "client_addr":
            return self._connection.getsockname()
        if info == "socket":
            return self._connection
        if info == "is_readable":
            return _is_readable(self._connection)
        return None


def _is_readable(connection: StreamSocket | ssl.SSLSocket) -> bool:
    """Whether an idle connection has something to read, which can only be its end."""
    if connection.fileno() < 0:
        return True
    poll = select.poll()
    poll.register(connection, select.POLLIN)
    return bool(poll.poll(0))


class AsyncTunnelBackend(httpcore.AsyncNetworkBackend):
    """For httpcore.AsyncConnectionPool(network_backend=...), under asyncio."""

    def __init__(self, tunnel: aio.Tunnel) -> None:
        self._through = tunnel

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Any = None,
    ) -> httpcore.AsyncNetworkStream:
        """timeout: seconds. local_address and socket_options have no meaning here. Raises httpcore.ConnectError and
        httpcore.ConnectTimeout."""
        with _mapped(httpcore.ConnectTimeout, httpcore.ConnectError):
            reader, writer = await self._through.open_connection(host, port, timeout=timeout)
            return _AsyncStream(reader, writer)

    async def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Any = None
    ) -> httpcore.AsyncNetworkStream:
        raise httpcore.ConnectError(f"{path}: a local socket is not behind the tunnel")

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class _AsyncStream(httpcore.AsyncNetworkStream):
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        with _mapped(httpcore.ReadTimeout, httpcore.ReadError):
            async with asyncio.timeout(timeout):
                return await self._reader.read(max_bytes)

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        if buffer:
            with _mapped(httpcore.WriteTimeout, httpcore.WriteError):
                self._writer.write(buffer)
                async with asyncio.timeout(timeout):
                    await self._writer.drain()

    async def aclose(self) -> None:
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.AsyncNetworkStream:
        with _mapped(httpcore.ConnectTimeout, httpcore.ConnectError):
            try:
                async with asyncio.timeout(timeout):
                    await self._writer.start_tls(ssl_context, server_hostname=server_hostname)
            except BaseException:
                self._writer.close()
                raise
        return self

    def get_extra_info(self, info: str) -> Any:
        if info == "is_readable":
            return self._reader.at_eof() or self._writer.is_closing()
        name = {"ssl_object": "ssl_object", "server_addr": "peername", "client_addr": "sockname", "socket": "socket"}
        return self._writer.get_extra_info(name[info]) if info in name else None
