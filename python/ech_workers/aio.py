# ruff: noqa: ASYNC109 (timeouts are handed to a thread, which asyncio.timeout could not end)
"""The tunnel for asyncio: ``async with aio.Tunnel(...) as tunnel: reader, writer = await tunnel.open_connection(...)``.

The same engine and supervisor as the blocking form; only what blocks (opening and waiting) is done in threads. The
streams themselves are sockets that asyncio reads and writes on its own.
"""

from __future__ import annotations

import asyncio
import functools
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar, Unpack

from ech_workers import tunnel as blocking
from ech_workers.errors import EngineClosed

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable
    from types import TracebackType

    from ech_workers import _native
    from ech_workers.config import ClientConfig, ClientOptions
    from ech_workers.supervisor import SupervisorStatus

__all__ = ["Tunnel"]

T = TypeVar("T")

# How many streams may be in the middle of being opened; a stream that is open needs no thread.
_OPENING = 64


class Tunnel:
    """A running tunnel for one event loop; takes the same options as ``ech_workers.Tunnel``."""

    def __init__(self, server: str, **options: Unpack[ClientOptions]) -> None:
        """Raises ConfigError. Nothing is started yet."""
        self._prepare(blocking.Tunnel(server, **options))

    @classmethod
    def from_config(cls, config: ClientConfig) -> Tunnel:
        """The tunnel for a configuration made before."""
        tunnel = cls.__new__(cls)
        tunnel._prepare(blocking.Tunnel.from_config(config))
        return tunnel

    def _prepare(self, tunnel: blocking.Tunnel) -> None:
        self._tunnel = tunnel
        self._threads = ThreadPoolExecutor(_OPENING, thread_name_prefix="ech-workers-open")
        self._closed = False

    @property
    def config(self) -> ClientConfig:
        return self._tunnel.config

    @property
    def addresses(self) -> tuple[tuple[str, int], ...]:
        """The local ports that are open."""
        return self._tunnel.addresses

    @property
    def status_addresses(self) -> tuple[tuple[str, int], ...]:
        """Where the status page is."""
        return self._tunnel.status_addresses

    async def start(self) -> None:
        """Opens the configured local ports and begins to connect; does not wait for a session."""
        await self._in_thread(self._tunnel.start)

    async def wait_ready(self, timeout: float | None = None) -> None:
        """Waits until the first session is up. Raises the TunnelError that explains why there is none."""
        await self._in_thread(functools.partial(self._tunnel.wait_ready, timeout))

    async def open_connection(
        self, host: str, port: int, *, timeout: float | None = None, **options: Any
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A reader and a writer to ``host:port`` behind the server, like asyncio.open_connection.

        timeout, in seconds, is for the opening alone. Further options (``limit``, ``ssl``, ``server_hostname``) go to
        asyncio.open_connection. Raises TunnelError.
        """
        stream = await self.create_connection((host, port), timeout)
        try:
            return await asyncio.open_connection(sock=stream, **options)
        except BaseException:
            stream.close()
            raise

    async def create_connection(self, address: tuple[str, int], timeout: float | None = None) -> socket.socket:
        """A connected, non-blocking socket to ``(host, port)``, for the loop's sock_* methods. Raises TunnelError."""
        opening = self._in_thread(functools.partial(self._tunnel.create_connection, address, timeout))
        try:
            stream = await asyncio.shield(opening)
        except asyncio.CancelledError:
            opening.add_done_callback(_discard)
            raise
        stream.setblocking(False)
        return stream

    async def listen(
        self, host: str, port: int = 0, *, username: str | None = None, password: str | None = None
    ) -> tuple[str, int]:
        """Opens one more SOCKS5/HTTP port and returns its address; port 0 takes a free one. Raises ListenError."""
        return await self._in_thread(
            functools.partial(self._tunnel.listen, host, port, username=username, password=password)
        )

    def status(self) -> SupervisorStatus:
        """What the supervisor is doing, and why."""
        return self._tunnel.status()

    def snapshot(self) -> _native.Snapshot:
        """The engine's counters at this moment."""
        return self._tunnel.snapshot()

    async def close(self, grace: float = 0.0) -> None:
        """Closes the ports at once and the streams after at most ``grace`` seconds. May be called twice."""
        self._closed = True
        # Not in the pool: it may be full of openings, which end only with the engine.
        await asyncio.to_thread(self._tunnel.close, grace)
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def __aenter__(self) -> Tunnel:
        """Starts, and waits until a session is up. Raises the TunnelError that explains why there is none."""
        try:
            await self.start()
            await self.wait_ready()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def _in_thread(self, call: Callable[[], T]) -> asyncio.Future[T]:
        if self._closed:
            raise EngineClosed
        return asyncio.get_running_loop().run_in_executor(self._threads, call)


def _discard(opening: asyncio.Future[socket.socket]) -> None:
    """Closes a stream that was opened for a task cancelled meanwhile."""
    if not opening.cancelled() and opening.exception() is None:
        opening.result().close()
