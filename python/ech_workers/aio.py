"""The tunnel for asyncio: ``async with aio.Tunnel(...) as tunnel: reader, writer = await tunnel.open_connection(...)``.

The same engine and supervisor as the blocking form. An opening completes in the event loop, without a thread; the streams
are sockets that the loop reads and writes on its own.
"""

# ruff: noqa: ASYNC109 (one deadline for what is done natively, which asyncio.timeout could not end in order)

from __future__ import annotations

import asyncio
import contextlib
import time
import weakref
from typing import TYPE_CHECKING, Any, Unpack

from ech_workers import readiness
from ech_workers import tunnel as blocking
from ech_workers.errors import EngineClosed, TargetTimeout
from ech_workers.stream import reset

if TYPE_CHECKING:
    import ssl as ssl_module
    from collections.abc import AsyncIterator, Callable, Iterator
    from types import TracebackType

    from ech_workers import _native
    from ech_workers.config import ClientConfig, ClientOptions
    from ech_workers.overview import SupervisorStatus
    from ech_workers.stream import StreamSocket
    from ech_workers.tunnel import Connect

__all__ = ["Listener", "Tunnel"]


class Listener:
    """An open SOCKS5 and HTTP port of a tunnel. It closes with ``close``, at the end of an ``async with``, or with the
    tunnel."""

    def __init__(self, listener: blocking.Listener) -> None:
        self._listener = listener

    @property
    def address(self) -> tuple[str, int]:
        """Host and port that programs connect to."""
        return self._listener.address

    @property
    def host(self) -> str:
        return self._listener.host

    @property
    def port(self) -> int:
        return self._listener.port

    async def close(self) -> None:
        """Closes the port; connections that came by it go on. May be called twice."""
        self._listener.close()

    def __iter__(self) -> Iterator[Any]:
        """``host, port = await tunnel.listen(...)``."""
        return iter(self._listener)

    async def __aenter__(self) -> Listener:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        return repr(self._listener)


class Tunnel:
    """A running tunnel; takes the same options as ``ech_workers.Tunnel``. Several event loops may use it."""

    def __init__(self, server: str, *, connect: Connect = "wait", **options: Unpack[ClientOptions]) -> None:
        """connect: whether ``async with`` waits for the first session ("wait"), or goes on at once ("lazy"). Raises
        ConfigError. Nothing is started yet."""
        self._prepare(blocking.Tunnel(server, connect="lazy", **options), connect)

    @classmethod
    def from_config(cls, config: ClientConfig, *, connect: Connect = "wait") -> Tunnel:
        """The tunnel for a configuration made before."""
        tunnel = cls.__new__(cls)
        tunnel._prepare(blocking.Tunnel.from_config(config), connect)
        return tunnel

    def _prepare(self, tunnel: blocking.Tunnel, connect: Connect) -> None:
        self._tunnel = tunnel
        self._connect = connect

    @property
    def config(self) -> ClientConfig:
        """The validated configuration."""
        return self._tunnel.config

    @property
    def addresses(self) -> tuple[tuple[str, int], ...]:
        """The local ports that are open: host and port of each."""
        return self._tunnel.addresses

    @property
    def status_addresses(self) -> tuple[tuple[str, int], ...]:
        """Where the status page is: host and port of each."""
        return self._tunnel.status_addresses

    async def start(self) -> None:
        """Opens the configured local ports and begins to connect; does not wait for a session. May be called twice.

        Raises ListenError, or ConfigError for a certificate file that cannot be used.
        """
        await asyncio.to_thread(self._tunnel.start)

    async def wait_ready(self, timeout: float | None = None, *, patient: bool = False) -> None:
        """Waits until the first session is up, for ``timeout`` seconds at most (None: as long as it takes).

        Without ``patient`` it raises as soon as an attempt has failed for good: the TunnelError that says why. With it,
        it waits on: for a server that comes back. Raises SessionTimeout when the time is up, EngineClosed when the tunnel
        is closed.
        """
        supervisor = self._tunnel._started().supervisor
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._watching() as changed, _attentive():
            while not supervisor.is_ready(patient=patient):
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    raise readiness.late(supervisor, timeout or 0.0)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(changed.wait(), left)
                changed.clear()

    async def states(self) -> AsyncIterator[SupervisorStatus]:
        """The status now, and again each time that its phase, its cause or its sessions change; ends with the tunnel.

        Whoever is slow sees the newest state, and may miss some in between.
        """
        running = self._tunnel._started()
        with self._watching() as changed:
            seen: object = None
            while True:
                status = running.status()
                if blocking.state_of(status) != seen:
                    seen = blocking.state_of(status)
                    yield status
                if status.phase == "stopped":
                    return
                await changed.wait()
                changed.clear()

    @contextlib.contextmanager
    def _watching(self) -> Iterator[asyncio.Event]:
        changed = asyncio.Event()
        stop = self._tunnel._started().supervisor.watch(_in_loop(changed.set))
        try:
            yield changed
        finally:
            stop()

    async def open_connection(
        self,
        host: str,
        port: int,
        *,
        timeout: float | None = None,
        ssl: ssl_module.SSLContext | bool | None = None,
        server_hostname: str | None = None,
        ssl_handshake_timeout: float | None = None,
        limit: int = 65536,
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A reader and a writer to ``host:port`` behind the server, like asyncio.open_connection.

        timeout: seconds for all of the opening, the TLS handshake included; None is the option ``open_timeout`` for the
        stream, and asyncio's own limit for the handshake. ssl: True, or a context; server_hostname is the host unless
        given. limit: the reader's buffer, bytes. The writer's ``peername`` is the target.

        Raises TunnelError. When the stream is reset or its session lost later on, the reader raises StreamReset, which is
        a ConnectionResetError.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        stream = await self.create_connection((host, port), timeout)
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(limit=limit, loop=loop)
        protocol = _Protocol(reader, loop, stream)
        secure: dict[str, Any] = {}
        if ssl:
            secure = {
                "ssl": ssl,
                "server_hostname": host if server_hostname is None else server_hostname,
                "ssl_handshake_timeout": ssl_handshake_timeout,
            }
        try:
            async with asyncio.timeout(None if deadline is None else deadline - time.monotonic()):
                transport, _ = await loop.create_connection(lambda: protocol, sock=stream, **secure)
        except TimeoutError:
            stream.close()
            message = f"{host}:{port}: no TLS handshake within {timeout:g} s"
            raise TargetTimeout(message, code="target-timeout") from None
        except BaseException:
            stream.close()
            raise
        return reader, _Writer(transport, protocol, reader, loop)

    async def create_connection(
        self, address: tuple[str, int] | tuple[str, int, int, int], timeout: float | None = None
    ) -> StreamSocket:
        """A connected, non-blocking socket to ``(host, port)``, for the loop's sock_* methods, or for libraries that take
        one (``sock=``).

        timeout: seconds for all of the opening; None is the option ``open_timeout``. Raises TunnelError.
        """
        host, port, limit = blocking.checked_target(address, timeout)
        ended = asyncio.get_running_loop().create_future()

        def end() -> None:
            if not ended.done():
                ended.set_result(None)

        opening = self._tunnel._begin(host, port, limit, _in_loop(end))
        try:
            with _attentive():
                await ended
        except asyncio.CancelledError:
            opening.cancel()
            raise
        stream = self._tunnel._opened(opening, (host, port), limit)
        stream.setblocking(False)
        return stream

    async def listen(
        self, host: str, port: int = 0, *, username: str | None = None, password: str | None = None
    ) -> Listener:
        """Opens one more SOCKS5 and HTTP port; port 0 takes a free one. Raises ListenError."""
        return Listener(self._tunnel.listen(host, port, username=username, password=password))

    def status(self) -> SupervisorStatus:
        """What the supervisor is doing, and why. Times are seconds."""
        return self._tunnel.status()

    def snapshot(self) -> _native.Snapshot:
        """The engine's counters at this moment: connections, bytes, sessions with their round trips."""
        return self._tunnel.snapshot()

    async def close(self, grace: float = 0.0) -> None:
        """Closes the ports at once, and the streams when they have ended or after ``grace`` seconds. Whoever waits for a
        stream to be opened gets EngineClosed. May be called twice."""
        await asyncio.to_thread(self._tunnel.close, grace)

    async def __aenter__(self) -> Tunnel:
        """Starts, and waits until a session is up unless ``connect`` is "lazy". Raises the TunnelError that explains why
        there is none."""
        try:
            await self.start()
            if self._connect == "wait":
                await self.wait_ready()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"<aio.{repr(self._tunnel)[1:]}"


class _Protocol(asyncio.StreamReaderProtocol):
    """Hands the reader an exception where the stream ended before its data had, also on event loops that read the socket
    without its methods (uvloop)."""

    def __init__(self, reader: asyncio.StreamReader, loop: asyncio.AbstractEventLoop, stream: StreamSocket) -> None:
        super().__init__(reader, loop=loop)
        self._reader = reader
        self.target = stream.target
        self._end = stream.end

    def eof_received(self) -> bool | None:
        error = self._reset()
        if error is None:
            return super().eof_received()
        self._reader.set_exception(error)
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is None or isinstance(exc, ConnectionResetError):
            # The socket pair's own reset does not say why.
            exc = self._reset() or exc
        super().connection_lost(exc)

    def _reset(self) -> Exception | None:
        try:
            return reset(self.target, self._end)
        except EngineClosed as error:
            return error


class _Writer(asyncio.StreamWriter):
    """Knows the target, which event loops that ask the system instead of the socket do not (uvloop)."""

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        if name == "peername":
            protocol = self._protocol  # type: ignore[attr-defined]
            return protocol.target
        return super().get_extra_info(name, default)


class _Attention:
    """Wakes an event loop from time to time while somebody waits in it."""

    def __init__(self) -> None:
        self.waiting = 0
        self._timer: asyncio.TimerHandle | None = None

    def begin(self) -> None:
        self.waiting += 1
        if self._timer is None:
            self._again()

    def end(self) -> None:
        self.waiting -= 1
        if self.waiting == 0 and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _again(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(_ATTENTION, self._again)


# How long a signal can stay unnoticed, in seconds.
_ATTENTION = 0.05

_attentions: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Attention] = weakref.WeakKeyDictionary()


@contextlib.contextmanager
def _attentive() -> Iterator[None]:
    """Has Ctrl-C noticed while something is awaited.

    asyncio's runner handles SIGINT in Python, and Python handles a signal before the loop begins to wait or after it. One
    that comes in the moment between, while another thread has the GIL, would be noticed at the next event only: the end
    of a time limit, perhaps.
    """
    loop = asyncio.get_running_loop()
    attention = _attentions.get(loop)
    if attention is None:
        attention = _attentions[loop] = _Attention()
    attention.begin()
    try:
        yield
    finally:
        attention.end()


def _in_loop(call: Callable[[], object]) -> Callable[[], None]:
    """A function for other threads that has ``call`` called in the loop of this task."""
    loop = asyncio.get_running_loop()

    def tell() -> None:
        # A loop that is closed has nobody left who waits.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(call)

    return tell
