"""The tunnel as an object: ``with Tunnel(...) as tunnel: tunnel.create_connection((host, port))``."""

from __future__ import annotations

import logging
import os
import socket
import threading
from typing import TYPE_CHECKING, Any, Unpack

from ech_workers import _native
from ech_workers.config import ClientConfig, ListenAddress
from ech_workers.ech import EchStore
from ech_workers.errors import ConfigError, EngineClosed, ListenError, SessionError, TargetError
from ech_workers.supervisor import Supervisor

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from ech_workers.config import ClientOptions
    from ech_workers.status.port import StatusPort
    from ech_workers.supervisor import SupervisorStatus

__all__ = ["StreamSocket", "Tunnel"]

log = logging.getLogger("ech_workers")


class Tunnel:
    """A running tunnel: the native engine, and the supervisor that keeps its sessions up, in a thread of its own.

    Takes the options of ``ech-workers proxy`` by their names (``Tunnel("tunnel.example/ws", token="...")``); no local
    port is opened unless ``listen`` is given. Usable from several threads.
    """

    def __init__(self, server: str, **options: Unpack[ClientOptions]) -> None:
        """Raises ConfigError. Nothing is started yet."""
        options.setdefault("listen", None)
        self._prepare(ClientConfig.build(server=server, **options), None)

    @classmethod
    def from_config(cls, config: ClientConfig, *, on_event: Callable[[_native.Event], object] | None = None) -> Tunnel:
        """The tunnel for a configuration made before. on_event is called with every native event, in the supervisor's
        thread."""
        tunnel = cls.__new__(cls)
        tunnel._prepare(config, on_event)
        return tunnel

    def _prepare(self, config: ClientConfig, on_event: Callable[[_native.Event], object] | None) -> None:
        self.config = config
        self._on_event = on_event
        self._lock = threading.Lock()
        self._engine: _native.Engine | None = None
        self._supervisor: Supervisor | None = None
        self._thread: threading.Thread | None = None
        self._status_port: StatusPort | None = None
        self._closed = False
        self._addresses: list[tuple[str, int]] = []

    def start(self) -> None:
        """Opens the configured local ports and begins to connect; does not wait.

        Raises ListenError, or ConfigError for a certificate file that cannot be used.
        """
        with self._lock:
            if self._closed:
                raise EngineClosed
            if self._engine is not None:
                return
            config = self.config
            engine = _engine(config)
            try:
                for address in config.listen:
                    self._addresses.append(_listen(engine, address, config.username, config.password))
                supervisor = Supervisor(config, engine, EchStore(config.cache_dir), on_event=self._on_event)
                status_port = self._open_status_port()
            except BaseException:
                engine.close()
                self._addresses.clear()
                raise
            self._engine, self._supervisor, self._status_port = engine, supervisor, status_port
            self._thread = threading.Thread(target=supervisor.run, name="ech-workers-supervisor", daemon=True)
            self._thread.start()
            if status_port is not None:
                status_port.start()

    def wait_ready(self, timeout: float | None = None) -> None:
        """Waits until the first session is up. Raises the TunnelError that explains why there is none."""
        self._running()[1].wait_ready(timeout)

    def create_connection(self, address: tuple[str, int], timeout: float | None = None) -> socket.socket:
        """A connected socket to ``(host, port)`` behind the server, like socket.create_connection.

        The host's name is resolved by the server. timeout, in seconds, is for the opening and then stays set on the
        socket. Raises TunnelError; a target that cannot be reached is told by our own server as a TargetError, while a
        deployed one only closes the stream.
        """
        engine, supervisor = self._running()
        host, port = address
        try:
            stream = StreamSocket(address, engine.open_stream(host, port, timeout))
        except SessionError as error:
            cause = supervisor.status().cause if error.code == "no-session" else None
            if cause is not None:
                # Why there is no session says more than that there is none.
                raise cause.error() from error
            raise
        except ValueError as error:
            raise TargetError(str(error), code="target-invalid") from None
        stream.settimeout(timeout)
        return stream

    def listen(
        self, host: str, port: int = 0, *, username: str | None = None, password: str | None = None
    ) -> tuple[str, int]:
        """Opens one more SOCKS5/HTTP port and returns its address; port 0 takes a free one. Raises ListenError."""
        address = _listen(self._running()[0], ListenAddress(host, port), username, password)
        self._addresses.append(address)
        return address

    @property
    def addresses(self) -> tuple[tuple[str, int], ...]:
        """The local ports that are open."""
        return tuple(self._addresses)

    @property
    def status_addresses(self) -> tuple[tuple[str, int], ...]:
        """Where the status page is."""
        return () if self._status_port is None else self._status_port.addresses

    def status(self) -> SupervisorStatus:
        """What the supervisor is doing, and why."""
        return self._running()[1].status()

    def snapshot(self) -> _native.Snapshot:
        """The engine's counters at this moment."""
        return self._running()[0].snapshot()

    def close(self, grace: float = 0.0) -> None:
        """Closes the ports at once and the streams after at most ``grace`` seconds. May be called twice."""
        with self._lock:
            self._closed = True
            engine, supervisor, thread = self._engine, self._supervisor, self._thread
            status_port = self._status_port
        if status_port is not None:
            status_port.close()
        if supervisor is not None:
            supervisor.stop()
        if thread is not None and thread is not threading.current_thread():
            thread.join()
        if engine is not None:
            engine.close(grace)

    def __enter__(self) -> Tunnel:
        """Starts, and waits until a session is up. Raises the TunnelError that explains why there is none."""
        self.start()
        try:
            self.wait_ready()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _open_status_port(self) -> StatusPort | None:
        if not self.config.status_listen:
            return None
        from ech_workers.status.port import StatusPort

        return StatusPort(self.config.status_listen, self)

    def _running(self) -> tuple[_native.Engine, Supervisor]:
        engine, supervisor = self._engine, self._supervisor
        if engine is None or supervisor is None:
            raise EngineClosed("the tunnel is not started")
        if self._closed:
            raise EngineClosed
        return engine, supervisor


class StreamSocket(socket.socket):
    """A connected socket whose other end is a stream of the tunnel.

    Below it is one end of a socket pair; it behaves like the TCP socket that programs expect: ``getpeername`` is the
    target, and TCP options, which have no meaning here, are accepted.
    """

    def __init__(self, target: tuple[str, int], descriptor: int) -> None:
        """Owns the descriptor from then on."""
        super().__init__(fileno=descriptor)
        self._target = target

    def getpeername(self) -> tuple[str, int]:
        """The target as it was asked for."""
        super().getpeername()  # raises OSError when the stream has ended, as a TCP socket does
        return self._target

    def setsockopt(self, level: int, optname: int, value: Any, *optlen: Any) -> None:
        if level != socket.IPPROTO_TCP:
            super().setsockopt(level, optname, value, *optlen)


def _engine(config: ClientConfig) -> _native.Engine:
    try:
        return _native.Engine(
            ca_pem=() if config.ca_pem is None else (config.ca_pem,),
            max_connections=config.max_connections,
            open_timeout=config.open_timeout,
            idle_timeout=config.idle_timeout,
            memory_limit=config.memory_limit,
            reply=config.reply,
            # A session's bytes use one core at a time, so more threads than sessions would idle.
            workers=min(config.sessions, os.cpu_count() or 1),
            log_level=log.getEffectiveLevel(),
        )
    except ValueError as error:
        raise ConfigError(str(error), option="--ca-file" if config.ca_pem else None) from None


def _listen(
    engine: _native.Engine, address: ListenAddress, username: str | None, password: str | None
) -> tuple[str, int]:
    try:
        return engine.listen(address.host, address.port, username=username, password=password)
    except ValueError as error:
        raise ConfigError(str(error), option="--username") from None
    except OSError as error:
        raise ListenError.from_os_error(str(address), error) from None
