"""The tunnel as an object: ``with Tunnel(...) as tunnel: tunnel.create_connection((host, port))``."""

from __future__ import annotations

import os
import socket
import sys
import threading
import warnings
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Unpack

from ech_workers import _native, readiness, waiting
from ech_workers.config import ClientConfig, ListenAddress
from ech_workers.errors import ConfigError, EngineClosed, SessionError, SessionTimeout, TargetError
from ech_workers.names import ascii_name
from ech_workers.running import Listener, Running
from ech_workers.stream import StreamSocket

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType

    from ech_workers import _native
    from ech_workers.config import ClientOptions
    from ech_workers.errors import Cause
    from ech_workers.overview import SupervisorStatus

__all__ = ["Connect", "Listener", "StreamSocket", "Tunnel"]

Connect = Literal["wait", "lazy"]


class Tunnel:
    """A running tunnel: the native engine, and the supervisor that keeps its sessions up, in a thread of its own.

    Takes the options of ``ech-workers proxy`` by their names (``Tunnel("tunnel.example/ws", token="...")``); no local
    port is opened unless ``listen`` is given. Usable from several threads, and in the process that started it alone: in
    a forked child every method raises EngineClosed, and a new Tunnel can be made. The process's limit of open files is
    left as it is: each open stream takes two, each local connection one, in simple mode one more.
    """

    def __init__(self, server: str, *, connect: Connect = "wait", **options: Unpack[ClientOptions]) -> None:
        """connect: whether ``with`` waits for the first session ("wait"), or goes on at once and leaves that to whoever
        opens a connection ("lazy"). Raises ConfigError. Nothing is started yet."""
        options.setdefault("listen", None)
        self._prepare(ClientConfig.build(server=server, **options), connect, None)

    @classmethod
    def from_config(
        cls,
        config: ClientConfig,
        *,
        connect: Connect = "wait",
        on_event: Callable[[_native.Event], object] | None = None,
        places: Callable[[ClientConfig], int] | None = None,
    ) -> Tunnel:
        """The tunnel for a configuration made before. on_event is called with every native event, in the supervisor's
        thread. places: how many local connections there may be by a configuration; None: as many as it says. Raises ConfigError."""
        tunnel = cls.__new__(cls)
        tunnel._prepare(config, connect, on_event, places)
        return tunnel

    def _prepare(
        self,
        config: ClientConfig,
        connect: Connect,
        on_event: Callable[[_native.Event], object] | None,
        places: Callable[[ClientConfig], int] | None = None,
    ) -> None:
        if connect not in ("wait", "lazy"):
            raise ConfigError(f"wait or lazy, not {connect!r}", option="connect")
        self.config = config
        """The validated configuration."""
        self._connect = connect
        self._on_event = on_event
        self._places = places
        self._lock = threading.Lock()
        self._process = os.getpid()
        self._running: Running | None = None
        self._entered = 0
        self._closed = False

    def start(self) -> None:
        """Opens the configured local ports and begins to connect; does not wait. May be called twice.

        Raises ListenError, or ConfigError for a certificate file that cannot be used.
        """
        self._check_process()
        with self._lock:
            if self._closed:
                raise EngineClosed
            if self._running is None:
                self._running = Running(self.config, self._on_event, self._places)

    def wait_ready(self, timeout: float | None = None, *, patient: bool = False) -> None:
        """Waits until the first session is up, for ``timeout`` seconds at most (None: as long as it takes).

        Without ``patient`` it raises as soon as an attempt has failed for good: the TunnelError that says why. With it,
        it waits on: for a server that comes back. Raises SessionTimeout when the time is up, EngineClosed when the tunnel
        is closed.
        """
        readiness.wait_ready(self._started().supervisor, timeout, patient=patient)

    def states(self) -> Iterator[SupervisorStatus]:
        """The status now, and again each time that its phase, its cause or its sessions change; ends with the tunnel.

        Whoever is slow sees the newest state, and may miss some in between.
        """
        running = self._started()
        with readiness.watching(running.supervisor) as turns:
            seen: object = None
            while True:
                status = running.status()
                if state_of(status) != seen:
                    seen = state_of(status)
                    yield status
                if status.phase == "stopped":
                    return
                turns.wait(None)

    def create_connection(
        self,
        address: tuple[str, int] | tuple[str, int, int, int],
        timeout: float | None = None,
        source_address: object = None,
        *,
        all_errors: bool = False,
    ) -> StreamSocket:
        """A connected socket to ``(host, port)`` behind the server, with the arguments of socket.create_connection.

        address: host and port; what an IPv6 address may have beside them is ignored. The name is resolved by the server.
        timeout: seconds for all of the opening (the wait for a session, and the server's answer), which then stay set on
        the socket; None is the option ``open_timeout``, and a socket that blocks. source_address and all_errors have no
        meaning here: the server connects.

        Raises TunnelError: TimeoutError when the time is up, TargetError when our own server says that the target cannot
        be reached (a deployed one only ends the stream), and why there is no session when there is none.
        """
        del source_address, all_errors
        host, port, limit = checked_target(address, timeout)
        running = self._started()
        try:
            opening = waiting.await_opening(running.engine, host, port, limit)
        except ValueError as error:
            raise TargetError(str(error), code="target-invalid") from None
        stream = self._opened(opening, (host, port), limit)
        stream.settimeout(limit)
        return stream

    def _begin(self, host: str, port: int, limit: float | None, done: Callable[[], object]) -> _native.Opening:
        """Begins to open a stream; ``done`` is called in another thread when that has ended."""
        try:
            return self._started().engine.open(host, port, limit, done)
        except ValueError as error:
            raise TargetError(str(error), code="target-invalid") from None

    def _opened(self, opening: _native.Opening, target: tuple[str, int], limit: float | None) -> StreamSocket:
        """The socket of an opening that has ended. Raises TunnelError."""
        try:
            descriptor, end = opening.result()
        except SessionError as error:
            if error.code not in ("no-session", "session-timeout"):
                raise
            # Why there is no session says more than that there is none.
            running = self._running
            cause = running.status().cause if running is not None else None
            if cause is None:
                raise
            raise _without_session(error, cause, limit) from None
        return StreamSocket(target, descriptor, end)

    def listen(self, host: str, port: int = 0, *, username: str | None = None, password: str | None = None) -> Listener:
        """Opens one more SOCKS5 and HTTP port; port 0 takes a free one. Raises ListenError."""
        return self._started().listen(ListenAddress(host, port), username, password)

    @property
    def addresses(self) -> tuple[tuple[str, int], ...]:
        """The local ports that are open: host and port of each."""
        return () if self._running is None else self._running.addresses

    @property
    def status_addresses(self) -> tuple[tuple[str, int], ...]:
        """Where the status page is: host and port of each."""
        running = self._running
        return () if running is None or running.status_port is None else running.status_port.addresses

    def status(self) -> SupervisorStatus:
        """What the supervisor is doing, and why. Times are seconds."""
        return self._started().status()

    def snapshot(self) -> _native.Snapshot:
        """The engine's counters at this moment: connections, bytes, sessions with their round trips."""
        return self._started().snapshot()

    def connections(self) -> tuple[_native.ConnectionSnapshot, ...]:
        """The local connections, and the streams of Python programs, that are open: where they go, what carries them, and
        how much they have carried. The oldest first."""
        return self._started().engine.connections()

    def server_names(self) -> dict[int, str]:
        """The names of the servers, by the numbers (``upstream``) that connections and sessions have. A server keeps its
        number over every ``apply``, and none gets that of another."""
        return self._started().server_names()

    def cut(self, connection: int) -> bool:
        """Ends one of the ``connections`` by its id; both of its sides see a reset. False: it is not open."""
        return self._started().engine.cut(connection)

    def apply(self, config: ClientConfig) -> None:
        """Takes from another configuration what can be changed in a running tunnel: all but ``control``, which the command has.

        Nothing that is open is cut: sessions by the new configuration are made first, then those that were there take no
        new streams, and end with their last one. Whoever waits in ``wait_ready`` meanwhile gets EngineClosed. Raises
        ListenError: nothing has changed then.
        """
        running = self._started()
        with self._lock:
            running.apply(config)
            self.config = running.config

    def close(self, grace: float = 0.0) -> None:
        """Closes the ports at once, and the streams when they have ended or after ``grace`` seconds. Whoever waits for a
        stream to be opened gets EngineClosed. May be called twice."""
        self._check_process()
        with self._lock:
            self._closed = True
            running = self._running
        if running is not None:
            running.close(grace)

    def __enter__(self) -> Tunnel:
        """Starts, and waits until a session is up unless ``connect`` is "lazy". Raises the TunnelError that explains why
        there is none."""
        self.start()
        try:
            if self._connect == "wait":
                self.wait_ready()
        except BaseException:
            self.close()
            raise
        self._entered += 1
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._entered -= 1
        # A forked child that leaves the block has nothing to close, and a tunnel entered twice is closed at the last exit.
        if self._entered == 0 and os.getpid() == self._process:
            self.close()

    def __del__(self) -> None:
        running = getattr(self, "_running", None)
        if running is None or self._closed or os.getpid() != self._process or sys.is_finalizing():
            return
        running.forget()
        warnings.warn(f"unclosed {self!r}", ResourceWarning, source=self, stacklevel=2)

    def __repr__(self) -> str:
        running = self._running
        if self._closed:
            state = "closed"
        elif running is None:
            state = "not started"
        elif os.getpid() != self._process:
            state = "of another process"
        else:
            status = running.status()
            state = f"{status.phase}, sessions: {len(status.sessions)}"
        return f"<Tunnel to {self.config.server}: {state}>"

    def _started(self) -> Running:
        self._check_process()
        if self._closed:
            raise EngineClosed
        if self._running is None:
            raise EngineClosed("the tunnel is not started", advice="call start(), or use it in a with statement")
        return self._running

    def _check_process(self) -> None:
        if os.getpid() != self._process:
            raise EngineClosed("this tunnel belongs to another process: make a Tunnel in the child")


class _State(NamedTuple):
    phase: str
    cause: Cause | None
    sessions: tuple[tuple[int, bool], ...]


def state_of(status: SupervisorStatus) -> _State:
    """What makes one state another, for ``states``."""
    sessions = tuple((session.session, session.retiring) for session in status.sessions)
    return _State(status.phase, status.cause, sessions)


def checked_target(address: tuple[Any, ...], timeout: Any) -> tuple[str, int, float | None]:
    """Host, port and time limit in seconds, as socket.create_connection would read them. Raises TargetError, ValueError."""
    try:
        host, port = address[0], int(address[1])
        host = host.decode("ascii") if isinstance(host, bytes) else host
        if not isinstance(host, str):
            raise TypeError
    except (TypeError, ValueError, IndexError):
        raise TargetError(f"(host, port), not {address!r}", code="target-invalid") from None
    if not 1 <= port <= 65535:
        raise TargetError(f"{host}: the port is 1 to 65535, not {port}", code="target-invalid")
    try:
        host = ascii_name(host)
    except ValueError as error:
        raise TargetError(f"{host!r} is no host name: {error}", code="target-invalid") from None
    if timeout is not None and not isinstance(timeout, int | float):
        # The mark for "as set by socket.setdefaulttimeout" that http.client and others hand on.
        timeout = socket.getdefaulttimeout()
    if timeout is None:
        return host, port, None
    if not 0 <= timeout < float("inf"):
        raise ValueError("Timeout value out of range")
    if timeout == 0:
        raise SessionTimeout("no stream can be opened within 0 s", code="session-timeout")
    return host, port, float(timeout)


def _without_session(error: SessionError, cause: Cause, limit: float | None) -> Exception:
    if error.code == "no-session":
        return cause.error()
    within = "" if limit is None else f" within {limit:g} s"
    return SessionTimeout(
        f"no session{within}: {cause.message}", code=error.code, detail=cause.detail, advice=cause.advice or ""
    )
