"""httpx through a tunnel: ``pip install ech-workers[httpx]``."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from ech_workers.integrations import missing

try:
    import httpcore
    import httpx
except ImportError as error:
    raise missing(error, "httpx") from None

from ech_workers.integrations.httpcore import AsyncTunnelBackend, TunnelBackend

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator
    from types import TracebackType

    from ech_workers import aio
    from ech_workers.tunnel import Tunnel

__all__ = ["AsyncTunnelTransport", "TunnelTransport"]

# As httpx has them by default.
_LIMITS = httpx.Limits(max_connections=100, max_keepalive_connections=20, keepalive_expiry=5.0)


class TunnelTransport(httpx.BaseTransport):
    """``httpx.Client(transport=TunnelTransport(tunnel))``."""

    def __init__(
        self,
        tunnel: Tunnel,
        *,
        verify: ssl.SSLContext | bool = True,
        http1: bool = True,
        http2: bool = False,
        limits: httpx.Limits = _LIMITS,
        retries: int = 0,
    ) -> None:
        """verify: the context for https, or whether certificates are checked. http2: offer HTTP/2 inside of the tunnel
        (``pip install httpx[http2]``). retries: how often a connection is tried again."""
        self._pool = httpcore.ConnectionPool(
            network_backend=TunnelBackend(tunnel), **_options(verify, http1, http2, limits, retries)
        )

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Raises httpx.TransportError."""
        with _mapped(request):
            response = self._pool.handle_request(_outgoing(request))
        return httpx.Response(
            response.status,
            headers=response.headers,
            stream=_Body(response.stream, request),  # type: ignore[arg-type]
            extensions=response.extensions,
        )

    def close(self) -> None:
        self._pool.close()

    def __exit__(
        self,
        exc_type: type[BaseException] | None = None,
        exc_value: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        self.close()


class AsyncTunnelTransport(httpx.AsyncBaseTransport):
    """``httpx.AsyncClient(transport=AsyncTunnelTransport(tunnel))``, under asyncio."""

    def __init__(
        self,
        tunnel: aio.Tunnel,
        *,
        verify: ssl.SSLContext | bool = True,
        http1: bool = True,
        http2: bool = False,
        limits: httpx.Limits = _LIMITS,
        retries: int = 0,
    ) -> None:
        """As TunnelTransport."""
        self._pool = httpcore.AsyncConnectionPool(
            network_backend=AsyncTunnelBackend(tunnel), **_options(verify, http1, http2, limits, retries)
        )

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Raises httpx.TransportError."""
        with _mapped(request):
            response = await self._pool.handle_async_request(_outgoing(request))
        return httpx.Response(
            response.status,
            headers=response.headers,
            stream=_AsyncBody(response.stream, request),  # type: ignore[arg-type]
            extensions=response.extensions,
        )

    async def aclose(self) -> None:
        await self._pool.aclose()

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None = None,
        exc_value: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        await self.aclose()


def _options(
    verify: ssl.SSLContext | bool, http1: bool, http2: bool, limits: httpx.Limits, retries: int
) -> dict[str, Any]:
    return {
        "ssl_context": httpx.create_ssl_context(verify=verify),
        "max_connections": limits.max_connections,
        "max_keepalive_connections": limits.max_keepalive_connections,
        "keepalive_expiry": limits.keepalive_expiry,
        "http1": http1,
        "http2": http2,
        "retries": retries,
    }


def _outgoing(request: httpx.Request) -> httpcore.Request:
    return httpcore.Request(
        method=request.method,
        url=httpcore.URL(
            scheme=request.url.raw_scheme,
            host=request.url.raw_host,
            port=request.url.port,
            target=request.url.raw_path,
        ),
        headers=request.headers.raw,
        content=request.stream,
        extensions=request.extensions,
    )


class _Body(httpx.SyncByteStream):
    def __init__(self, body: Iterable[bytes], request: httpx.Request) -> None:
        self._body = body
        self._request = request

    def __iter__(self) -> Iterator[bytes]:
        with _mapped(self._request):
            yield from self._body

    def close(self) -> None:
        if hasattr(self._body, "close"):
            self._body.close()


class _AsyncBody(httpx.AsyncByteStream):
    def __init__(self, body: AsyncIterable[bytes], request: httpx.Request) -> None:
        self._body = body
        self._request = request

    async def __aiter__(self) -> AsyncIterator[bytes]:
        with _mapped(self._request):
            async for piece in self._body:
                yield piece

    async def aclose(self) -> None:
        if hasattr(self._body, "aclose"):
            await self._body.aclose()


# httpx names them as httpcore does. The first that fits counts.
_EXCEPTIONS: tuple[tuple[type[Exception], type[httpx.RequestError]], ...] = (
    (httpcore.ConnectTimeout, httpx.ConnectTimeout),
    (httpcore.ReadTimeout, httpx.ReadTimeout),
    (httpcore.WriteTimeout, httpx.WriteTimeout),
    (httpcore.PoolTimeout, httpx.PoolTimeout),
    (httpcore.TimeoutException, httpx.TimeoutException),
    (httpcore.ConnectError, httpx.ConnectError),
    (httpcore.ReadError, httpx.ReadError),
    (httpcore.WriteError, httpx.WriteError),
    (httpcore.NetworkError, httpx.NetworkError),
    (httpcore.LocalProtocolError, httpx.LocalProtocolError),
    (httpcore.RemoteProtocolError, httpx.RemoteProtocolError),
    (httpcore.ProtocolError, httpx.ProtocolError),
    (httpcore.ProxyError, httpx.ProxyError),
    (httpcore.UnsupportedProtocol, httpx.UnsupportedProtocol),
)


@contextlib.contextmanager
def _mapped(request: httpx.Request) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        for theirs, ours in _EXCEPTIONS:
            if isinstance(error, theirs):
                raise ours(str(error), request=request) from error
        raise
