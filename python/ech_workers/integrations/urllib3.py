"""urllib3 through a tunnel: ``pip install ech-workers[requests]``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ech_workers.integrations import missing

try:
    import urllib3
    from urllib3.connection import HTTPConnection, HTTPSConnection
    from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
    from urllib3.exceptions import ConnectTimeoutError, NewConnectionError
except ImportError as error:
    raise missing(error, "requests") from None

if TYPE_CHECKING:
    import socket

    from ech_workers.tunnel import Tunnel

__all__ = ["TunnelPoolManager"]


class TunnelPoolManager(urllib3.PoolManager):
    """A urllib3.PoolManager whose connections go through a tunnel."""

    def __init__(self, tunnel: Tunnel, num_pools: int = 10, **options: Any) -> None:
        """options: those of urllib3.PoolManager (``timeout``, ``retries``, ``maxsize``, ``ssl_context``, ...)."""
        super().__init__(num_pools, **options)
        self.pool_classes_by_scheme = _pools(tunnel)


def _pools(tunnel: Tunnel) -> dict[str, type[HTTPConnectionPool]]:
    """The pools of one tunnel: urllib3 makes connections by their class."""

    class Plain(HTTPConnection):
        def _new_conn(self) -> socket.socket:
            return _connect(tunnel, self)

    class Secure(HTTPSConnection):
        def _new_conn(self) -> socket.socket:
            return _connect(tunnel, self)

    class PlainPool(HTTPConnectionPool):
        ConnectionCls = Plain

    class SecurePool(HTTPSConnectionPool):
        ConnectionCls = Secure

    return {"http": PlainPool, "https": SecurePool}


def _connect(tunnel: Tunnel, connection: HTTPConnection) -> socket.socket:
    try:
        return tunnel.create_connection((connection.host, connection.port), connection.timeout)
    except TimeoutError as error:
        raise ConnectTimeoutError(connection, str(error)) from error
    except OSError as error:
        raise NewConnectionError(connection, str(error)) from error
