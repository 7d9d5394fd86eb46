"""aiohttp through a tunnel: ``pip install ech-workers[aiohttp]``."""

# ruff: noqa: ASYNC109 (aiohttp hands timeouts over)

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
from typing import TYPE_CHECKING, Any

from ech_workers.integrations import missing

try:
    import aiohttp
    from aiohttp.abc import AbstractResolver, ResolveResult
except ImportError as error:
    raise missing(error, "aiohttp") from None

if TYPE_CHECKING:
    from ech_workers.aio import Tunnel

__all__ = ["TunnelConnector"]

# RFC 5737: the address of nothing. Names are resolved by the server, and aiohttp wants something to go on with.
_NOWHERE = "192.0.2.1"


class TunnelConnector(aiohttp.TCPConnector):
    """A connector for aiohttp.ClientSession whose connections go through a tunnel.

    aiohttp has no public way to say how a connection is made. Should a release make them by another one than this class
    knows, they fail: the sockets for direct connections are refused to it.

    An answer that has neither a length nor chunks ends with its connection, and aiohttp takes it for whole also when the
    connection was reset, with or without a tunnel.
    """

    def __init__(self, tunnel: Tunnel, **options: Any) -> None:
        """options: those of aiohttp.TCPConnector (``limit``, ``ssl``, ...)."""
        super().__init__(resolver=_Elsewhere(), use_dns_cache=False, socket_factory=_refuse, **options)
        self._through = tunnel

    async def _wrap_create_connection(  # type: ignore[override]
        self,
        protocol_factory: Any,
        *,
        req: Any,
        timeout: aiohttp.ClientTimeout,
        client_error: type[aiohttp.ClientConnectorError] = aiohttp.ClientConnectorError,
        addr_infos: object = None,
        **options: Any,
    ) -> Any:
        del addr_infos
        loop = asyncio.get_running_loop()
        stream = None
        try:
            async with asyncio.timeout(timeout.sock_connect):
                stream = await self._through.create_connection((req.url.raw_host, req.port), timeout.sock_connect)
                return await loop.create_connection(protocol_factory, sock=stream, **options)
        except BaseException as error:
            if stream is not None:
                stream.close()
            if isinstance(error, ssl.CertificateError):
                raise aiohttp.ClientConnectorCertificateError(req.connection_key, error) from error
            if isinstance(error, ssl.SSLError):
                raise aiohttp.ClientConnectorSSLError(req.connection_key, error) from error
            if isinstance(error, OSError) and not isinstance(error, TimeoutError):
                raise client_error(req.connection_key, error) from error
            raise


class _Elsewhere(AbstractResolver):
    async def resolve(self, host: str, port: int = 0, family: int = socket.AF_INET) -> list[ResolveResult]:
        return [ResolveResult(hostname=host, host=_NOWHERE, port=port, family=socket.AF_INET, proto=0, flags=0)]

    async def close(self) -> None:
        pass


def _refuse(address: object) -> socket.socket:
    raise OSError(errno.EPERM, f"a connection to {address} would go around the tunnel")
