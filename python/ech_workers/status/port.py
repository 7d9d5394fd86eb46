"""The status port: the page, its feed, /healthz and /metrics, in one thread.

Not ``websockets.sync.server``: that has three threads for each connection, sends to a slow reader without a bound, and
ends only when every connection has. Its protocol without I/O (``websockets.server``) is used here, in a loop that sleeps
until somebody asks for something, and looks at the tunnel once a second while somebody watches.

A port on 127.0.0.1 is open to every web page that the user's browser shows. So a request must name the port by an
address or as localhost, or it would be a page's own name that leads here by DNS (rebinding), and if it has an Origin it
must be this port's.
"""

from __future__ import annotations

import contextlib
import errno
import hmac
import ipaddress
import logging
import re
import selectors
import socket
import threading
import time
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar, Protocol
from urllib.parse import parse_qs

from websockets.datastructures import MultipleValuesError

from ech_workers.errors import ConfigError, EngineClosed, ListenError
from ech_workers.status import feed, metrics, pac
from ech_workers.status.carried import carried
from ech_workers.status.connection import Connection, not_allowed, response
from ech_workers.status.facts import Observer
from ech_workers.status.page import page, policy

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from websockets.http11 import Request, Response

    from ech_workers.config import ListenAddress
    from ech_workers.status.facts import Observed
    from ech_workers.status.metrics import ObservedServer

__all__ = ["ServerPort", "StatusPort"]

WATCHERS = 16
"""At a time; more are told 503."""

CONNECTIONS = 64
"""At a time, watchers among them; more are closed at once."""

# Seconds without accepting when the process has no descriptor left.
_RESPITE = 1.0

_log = logging.getLogger("ech_workers")


class Guarded(Protocol):
    """Who may ask, as the configuration says it now."""

    @property
    def status_hosts(self) -> Sequence[str]: ...
    @property
    def status_token(self) -> str | None: ...


class Port(ABC):
    """Open ports and the thread that serves them; what they answer is for those who inherit."""

    paths: ClassVar[Sequence[str]]
    """What there is."""

    def __init__(self, addresses: Sequence[ListenAddress]) -> None:
        """Opens the ports; served from ``start`` on. Raises ListenError."""
        self._selector = selectors.DefaultSelector()
        self._listeners: list[socket.socket] = []
        self._connections: set[Connection] = set()
        self._frame = b""
        self._frame_due = 0.0
        self._accept_from: float | None = None
        self._stopping = False
        self._wake_reader, self._wake_writer = socket.socketpair()
        self._thread = threading.Thread(target=self._run, name="ech-workers-status", daemon=True)
        try:
            for address in addresses:
                self._listeners.append(_listener(address))
        except BaseException:
            self._close_sockets()
            raise
        self.addresses: tuple[tuple[str, int], ...] = tuple(listener.getsockname()[:2] for listener in self._listeners)
        """Where it listens."""

    def start(self) -> None:
        """Begins to serve."""
        self._thread.start()

    def close(self) -> None:
        """Closes the ports and all connections at once, and waits for the thread. May be called twice."""
        self._stopping = True
        if self._thread.is_alive():
            with contextlib.suppress(OSError):
                self._wake_writer.send(b"\0")
            self._thread.join()
        else:
            self._close_sockets()

    # ------------------------------------------------------------ the loop

    def _run(self) -> None:
        try:
            self._selector.register(self._wake_reader, selectors.EVENT_READ, None)
            self._listen(True)
            while not self._stopping:
                for key, _ in self._selector.select(self._pause()):
                    if isinstance(key.data, Connection):
                        self._guard(key.data, key.data.serve)
                    elif key.data is not None:
                        self._accept(key.data)
                self._keep_time()
        except Exception:
            _log.exception("the status page failed; the tunnel goes on without it")
        finally:
            for connection in list(self._connections):
                connection.say_goodbye()
                connection.close()
            self._close_sockets()

    def _pause(self) -> float | None:
        """How long there is nothing to do without being asked; None: for ever."""
        due = [connection.deadline for connection in self._connections if connection.deadline is not None]
        if self._is_watched():
            due.append(self._frame_due)
        if self._accept_from is not None:
            due.append(self._accept_from)
        return max(0.0, min(due) - time.monotonic()) if due else None

    def _keep_time(self) -> None:
        now = time.monotonic()
        if self._accept_from is not None and now >= self._accept_from:
            self._listen(True)
        for connection in list(self._connections):
            if connection.deadline is not None and now >= connection.deadline:
                connection.close()
        if now >= self._frame_due and self._is_watched():
            try:
                there = self._look(now)
            except Exception:
                _log.exception("the status page cannot say how the tunnel is")
                there = False
            for connection in list(self._connections):
                if not connection.is_watching:
                    continue
                if there:
                    self._guard(connection, connection.show, self._frame)
                else:
                    connection.close()

    def _guard(self, connection: Connection, work: Callable[..., None], *arguments: object) -> None:
        """A defect in one connection's service ends that connection alone."""
        try:
            work(*arguments)
        except Exception:
            _log.exception("a connection to the status page failed")
            connection.close()

    def _listen(self, listening: bool) -> None:
        for listener in self._listeners:
            if listening:
                self._selector.register(listener, selectors.EVENT_READ, listener)
            else:
                self._selector.unregister(listener)
        self._accept_from = None if listening else time.monotonic() + _RESPITE

    def _accept(self, listener: socket.socket) -> None:
        try:
            accepted, _ = listener.accept()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM) and self._accept_from is None:
                # It stays readable, and the loop must not go round.
                self._listen(False)
            return
        if len(self._connections) >= CONNECTIONS:
            accepted.close()
            return
        accepted.setblocking(False)
        accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
        Connection(accepted, self._selector, self._connections, self._answer)

    def _close_sockets(self) -> None:
        for closing in (*self._listeners, self._wake_reader, self._wake_writer):
            closing.close()
        self._selector.close()

    # ------------------------------------------------------------ what is served

    @abstractmethod
    def _guard_by(self) -> Guarded:
        """The configuration."""

    @abstractmethod
    def _answer_path(self, connection: Connection, request: Request, path: str) -> Response:
        """The answer to a GET (or HEAD) of one of ``paths`` by somebody who may ask."""

    def _look(self, now: float) -> bool:
        """Makes the frame of this second; False when there is none any more."""
        return False

    def _is_watched(self) -> bool:
        return any(connection.is_watching for connection in self._connections)

    def _answer(self, connection: Connection, request: Request) -> Response:
        reject = connection.protocol.reject
        config = self._guard_by()
        refusal = _refusal(request, config.status_hosts)
        if refusal is not None:
            return reject(403, refusal)
        if not connection.is_local and not _has_token(request, config.status_token):
            refused = reject(401, "give the token: Authorization: Bearer TOKEN, or ?token=TOKEN\n")
            refused.headers["WWW-Authenticate"] = "Bearer"
            return refused
        path = request.path.partition("?")[0]
        if path not in self.paths:
            return reject(404, f"there are {', '.join(self.paths[:-1])} and {self.paths[-1]} here\n")
        if request.method != "GET":
            return not_allowed(connection.protocol)
        return self._answer_path(connection, request, path)


class StatusPort(Port):
    """What there is to see of a tunnel: the page, its feed, /healthz, /metrics and /proxy.pac."""

    paths = ("/", "/feed", "/healthz", "/metrics", "/proxy.pac")

    def __init__(self, addresses: Sequence[ListenAddress], tunnel: Observed) -> None:
        """Raises ListenError."""
        self._tunnel = tunnel
        self._observer = Observer(tunnel, public=True)
        self._page = page()
        self._policy = policy(self._page)
        super().__init__(addresses)

    def _guard_by(self) -> Guarded:
        return self._tunnel.config

    def _look(self, now: float) -> bool:
        # In step, unless the machine slept.
        self._frame_due = max(self._frame_due + feed.INTERVAL, now + feed.INTERVAL / 2)
        try:
            self._frame = feed.frame(self._observer.look(), carried(self._tunnel))
        except EngineClosed:
            return False
        return True

    def _answer_path(self, connection: Connection, request: Request, path: str) -> Response:
        reject = connection.protocol.reject
        if path == "/":
            return response(
                200, "OK", "text/html; charset=utf-8", self._page, ("Content-Security-Policy", self._policy)
            )
        if path == "/feed":
            return self._watch(connection, request)
        if path == "/proxy.pac":
            return self._pac(connection)
        try:
            facts = self._observer.glance()
        except EngineClosed:
            return reject(503, "stopped\n")
        if path == "/metrics":
            return response(200, "OK", metrics.CONTENT_TYPE, metrics.exposition(facts).encode())
        if facts.is_up:
            return reject(200, "ok\n")
        return reject(503, f"{facts.phase if facts.cause is None else facts.cause.line}\n")

    def _pac(self, connection: Connection) -> Response:
        try:
            script = pac.script(self._tunnel.config.rules, self._tunnel.addresses, connection.reached)
        except ConfigError as error:
            # A list has gone since it was read.
            return connection.protocol.reject(503, f"{error.line()}\n")
        if script is None:
            return connection.protocol.reject(503, "no proxy port is open\n")
        return response(200, "OK", pac.CONTENT_TYPE, script.encode())

    def _watch(self, connection: Connection, request: Request) -> Response:
        watching = sum(other.is_watching for other in self._connections)
        if watching >= WATCHERS:
            return connection.protocol.reject(503, f"{WATCHERS} are watching already\n")
        accepted = connection.protocol.accept(request)
        if accepted.status_code == 101:
            now = time.monotonic()
            # Whoever comes while others watch gets what they got last: nobody's coming costs a look.
            if not watching:
                self._frame_due = now
                if not self._look(now):
                    return connection.protocol.reject(503, "stopped\n")
            connection.first = self._frame
        return accepted


class ServerPort(Port):
    """The server's figures, on a listener of its own: /healthz (it runs), /readyz (clients can use it) and /metrics."""

    paths = ("/healthz", "/readyz", "/metrics")

    def __init__(self, addresses: Sequence[ListenAddress], server: ObservedServer) -> None:
        """Raises ListenError."""
        self._server = server
        super().__init__(addresses)

    def _guard_by(self) -> Guarded:
        return self._server.config

    def _answer_path(self, connection: Connection, request: Request, path: str) -> Response:
        if path == "/metrics":
            return response(200, "OK", metrics.CONTENT_TYPE, metrics.server_exposition(self._server).encode())
        problem = self._server.unready() if path == "/readyz" else None
        return connection.protocol.reject(503 if problem else 200, f"{problem or 'ok'}\n")


def _has_token(request: Request, token: str | None) -> bool:
    """Whether a request from the network has the token; none is let in where there is no token."""
    if token is None:
        return False
    scheme, _, given = (request.headers.get("Authorization") or "").partition(" ")
    offered = [given.strip()] if scheme.lower() == "bearer" else []
    offered += parse_qs(request.path.partition("?")[2], max_num_fields=16).get("token", [])
    return any(hmac.compare_digest(one.encode(), token.encode()) for one in offered)


def _refusal(request: Request, names: Sequence[str]) -> str | None:
    """Why this request may be another site's page's, or None."""
    try:
        host, origin = request.headers.get("Host"), request.headers.get("Origin")
    except MultipleValuesError:
        return "several Host or Origin fields\n"
    if host is None or not _is_ours(host, names):
        return "name this port by its address, as localhost, or by a name given with --status-host\n"
    if origin is not None and origin.lower() != f"http://{host}".lower():
        return "this is not for pages of other sites\n"
    return None


_HOST = re.compile(r"(?:\[(?P<v6>[0-9A-Fa-f:.]{2,45})\]|(?P<name>[0-9A-Za-z_.-]{1,253}))(?::[0-9]{1,5})?")


def _is_ours(host: str, names: Sequence[str]) -> bool:
    """Whether a Host field holds an IP literal, localhost or one of ``names``: no name that a stranger's DNS could lead
    here."""
    found = _HOST.fullmatch(host)
    if found is None:
        return False
    if found["name"] is not None and found["name"].lower().removesuffix(".") in ("localhost", *names):
        return True
    try:
        address = ipaddress.ip_address(found["v6"] or found["name"])
    except ValueError:
        return False
    return address.version == (6 if found["v6"] else 4)


def _listener(address: ListenAddress) -> socket.socket:
    host = "127.0.0.1" if address.host == "localhost" else address.host
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        # [::] takes IPv4 as well, as the proxy's port does.
        listener = socket.create_server(
            (host, address.port), family=family, backlog=64, dualstack_ipv6=host == "::" and socket.has_dualstack_ipv6()
        )
    except OSError as error:
        raise ListenError.from_os_error(str(address), error, option="--status-listen") from None
    listener.setblocking(False)
    return listener
