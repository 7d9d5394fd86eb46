"""What there is to show of a running tunnel at one moment, for the table, the status page, its feed and the metrics."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Protocol, TypeVar

import msgspec

from ech_workers.config import authority
from ech_workers.overview import EchStatus, ProbeCounts, ProbeStatus, SupervisorStatus
from ech_workers.resolvers import ResolverStatus

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from ech_workers import errors
    from ech_workers._native import ConnectionSnapshot, SessionSnapshot, Snapshot
    from ech_workers.config import ClientConfig
    from ech_workers.overview import SessionStatus

__all__ = ["Cause", "Connections", "Facts", "Observed", "Observer", "Rates", "Server", "Session"]

S = TypeVar("S", bound=msgspec.Struct)

# Seconds; a rate over a longer time says nothing of this moment.
_RATE_LIMIT = 5.0


class Observed(Protocol):
    """What is looked at of a ``Tunnel``."""

    @property
    def config(self) -> ClientConfig: ...
    @property
    def addresses(self) -> Sequence[tuple[str, int]]: ...
    def status(self) -> SupervisorStatus: ...
    def snapshot(self) -> Snapshot: ...
    def server_names(self) -> Mapping[int, str]: ...
    def connections(self) -> Sequence[ConnectionSnapshot]: ...


class Rates(msgspec.Struct, frozen=True):
    """Bytes a second since the last look."""

    up: float
    down: float

    @classmethod
    def between(cls, before: Snapshot, after: Snapshot, seconds: float) -> Rates | None:
        """None when the time between is none, or too long to say something of now."""
        if not 0 < seconds <= _RATE_LIMIT:
            return None
        return cls((after.bytes_up - before.bytes_up) / seconds, (after.bytes_down - before.bytes_down) / seconds)


class Cause(msgspec.Struct, frozen=True):
    """Why there is no session, or fewer than wanted: an ``errors.Cause`` in words."""

    layer: str
    code: str
    message: str
    advice: str | None
    line: str
    """All of it in one line."""
    age: float
    """Seconds since it is known."""

    @classmethod
    def of(cls, cause: errors.Cause, age: float) -> Cause:
        return cls(cause.layer, cause.code, cause.message, cause.advice, cause.line(), age)


class Connections(msgspec.Struct, frozen=True):
    """Local connections, and streams of Python programs."""

    open: int
    waiting: int
    """For a session."""
    total: int
    failed: int
    direct: int = 0
    """So far, by a rule: straight to their target."""
    blocked: int = 0
    """So far, by a rule."""


class Session(msgspec.Struct, frozen=True, kw_only=True):
    """One session: what it carries, and how it came about (None where that is not known, which does not last)."""

    session: int
    address: str
    state: str
    """up, or retiring: no new streams, it ends with its last one."""
    age: float
    streams: int | None = None
    streams_total: int | None = None
    rtt_ms: float | None = None
    bytes_up: int | None = None
    bytes_down: int | None = None
    ech: str | None = None
    """accepted, or off."""
    public_name: str | None = None
    profile: str | None = None
    alpn: str | None = None
    cipher: str | None = None
    group: str | None = None
    resumed: bool | None = None
    retried: bool | None = None
    """Whether the server handed over a new ECH configuration on the way."""
    tcp_ms: float | None = None
    tls_ms: float | None = None
    websocket_ms: float | None = None

    @classmethod
    def of(cls, carried: SessionSnapshot | None, made: SessionStatus | None) -> Session:
        """One of the two may be missing: the engine and the supervisor are asked one after the other."""
        fields: dict[str, object] = {}
        if made is not None:
            fields = {name: getattr(made, name) for name in cls.__struct_fields__ if hasattr(made, name)}
            fields["state"] = "retiring" if made.retiring else "up"
        if carried is not None:
            fields |= {name: getattr(carried, name) for name in cls.__struct_fields__ if hasattr(carried, name)}
        return cls(**fields)  # type: ignore[arg-type]


class Server(msgspec.Struct, frozen=True, kw_only=True):
    """One of several servers."""

    name: str
    server: str
    """host:port, and the path unless the facts are public."""
    mode: str
    phase: str
    role: str
    """in use; standby; probation (it was lost, works again, and is not preferred yet); demoted (its
    connections stop after a few kilobytes); silent (it does not answer); down."""
    priority: int
    weight: int
    problem: str | None
    """Why it has no session, or fewer than wanted."""
    sessions: int
    rtt_ms: float | None
    """The shortest round trip of its sessions."""
    bytes_up: int
    """So far."""
    bytes_down: int
    dials_total: int
    """So far."""
    dials_failed: int
    ech_retries: int
    probes: ProbeCounts
    """So far."""
    stops_after: int | None = None
    """Bytes after which its connections stop, if they do."""
    probe: ProbeStatus | None = None
    """What came of the last probe, in which 64 KiB go there and come back."""
    can_be_probed: bool | None = None
    """False: the server does not do that, so that its traffic alone tells whether its connections stop. None: not known yet."""
    unreached: int = 0
    """Connections that went on to another server because this one could not reach their target."""
    unreached_why: str | None = None
    """Why the last of them did."""


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """One moment. Times are seconds, sizes bytes, unless a name ends in ``_ms``; up is from local programs to targets."""

    at: float
    """Since the epoch."""
    uptime: float
    listening: tuple[str, ...]
    """The SOCKS5 and HTTP ports."""
    server: str
    mode: str
    """yamux, or simple."""
    phase: str
    """resolving, connecting, up, degraded (fewer sessions than wanted), waiting (for the next attempt), stopped."""
    cause: Cause | None
    next_attempt_in: float | None
    wanted: int
    """Sessions."""
    dialing: int
    failures: int
    """Dials in a row that failed."""
    breaker: str
    """closed, open (after many failures: single attempts with long pauses), or half-open (one is under way)."""
    sessions: tuple[Session, ...]
    ech: EchStatus | None
    """None without ECH, and before a configuration is known."""
    resolvers: tuple[ResolverStatus, ...]
    rates: Rates | None
    """None at the first look."""
    bytes_up: int
    bytes_down: int
    connections: Connections
    targets_failed: int
    """Connections whose target the server could not reach."""
    last_target_failure: str | None
    dials_total: int
    dials_failed: int
    ech_retries: int
    probe: ProbeStatus | None = None
    """What came of the last probe, in which 64 KiB go to the server and come back; with several servers each has its own."""
    can_be_probed: bool | None = None
    """False: the server does not do that. None: not known yet, or there are several."""
    probes: ProbeCounts = ProbeCounts()
    """So far, of every server."""
    servers: tuple[Server, ...] = ()
    """Each of several servers, in the configured order; empty with one."""

    @property
    def is_up(self) -> bool:
        """Whether a local connection would be carried now."""
        return self.phase in ("up", "degraded")

    @property
    def ech_state(self) -> str:
        """accepted, known (a configuration, but no session), off (the server's name is in clear), or unknown."""
        if self.ech is None:
            return "off" if any(session.ech == "off" for session in self.sessions) else "unknown"
        return "accepted" if any(session.ech == "accepted" for session in self.sessions) else "known"


# What a server's counters are called in the snapshot too, which has none of a server that was not dialled.
_COUNTED = ("bytes_up", "bytes_down", "dials_total", "dials_failed", "ech_retries")


class Observer:
    """Looks at a tunnel, and remembers the last look for the rates."""

    def __init__(self, tunnel: Observed, *, public: bool = False) -> None:
        """public: for whoever reaches a port. Paths are left out then, the server's and the resolvers' (some have an
        account in it), and nothing secret is passed on that a message might have in it."""
        self._tunnel = tunnel
        self._server = tunnel.config.server.authority if public else str(tunnel.config.server)
        self._hide: Callable[[str], str] = _hiding(tunnel.config) if public else str
        self._before: tuple[Snapshot, float] | None = None

    def look(self) -> Facts:
        """Raises EngineClosed when the tunnel is."""
        status, snapshot, now = self._tunnel.status(), self._tunnel.snapshot(), time.monotonic()
        rates = None
        if self._before is not None:
            rates = Rates.between(self._before[0], snapshot, now - self._before[1])
        self._before = snapshot, now
        return self._facts(status, snapshot, rates)

    def glance(self) -> Facts:
        """Without rates, and without a trace in those of the next look. Raises EngineClosed."""
        return self._facts(self._tunnel.status(), self._tunnel.snapshot(), None)

    def _facts(self, status: SupervisorStatus, snapshot: Snapshot, rates: Rates | None) -> Facts:
        failure = snapshot.last_target_failure
        alone = status.upstreams[0] if len(status.upstreams) == 1 else None
        return Facts(
            at=time.time(),
            uptime=snapshot.uptime,
            listening=tuple(authority(*address) for address in self._tunnel.addresses),
            server=self._server,
            mode=status.mode,
            phase=status.phase,
            cause=None if status.cause is None else self._shown(Cause.of(status.cause, status.cause_age or 0.0)),
            next_attempt_in=status.next_attempt_in,
            wanted=status.wanted,
            dialing=status.dialing,
            failures=status.failures,
            breaker=status.breaker,
            sessions=_sessions(status, snapshot),
            ech=None if status.ech is None else self._shown(status.ech),
            resolvers=tuple(self._shown(resolver) for resolver in status.resolvers),
            rates=rates,
            bytes_up=snapshot.bytes_up,
            bytes_down=snapshot.bytes_down,
            connections=Connections(
                snapshot.connections,
                snapshot.connections_waiting,
                snapshot.connections_total,
                snapshot.connections_failed,
                snapshot.direct_total,
                snapshot.blocked_total,
            ),
            targets_failed=snapshot.targets_failed,
            last_target_failure=failure and self._hide(failure),
            dials_total=snapshot.dials_total,
            dials_failed=snapshot.dials_failed,
            ech_retries=snapshot.ech_retries,
            probe=None if alone is None else alone.probe,
            can_be_probed=None if alone is None else alone.can_be_probed,
            probes=_probes(status),
            servers=self._servers(status, snapshot),
        )

    def _servers(self, status: SupervisorStatus, snapshot: Snapshot) -> tuple[Server, ...]:
        if len(status.upstreams) < 2:
            return ()
        found = []
        counted = {counted.upstream: counted for counted in snapshot.upstreams}
        for upstream, config in zip(status.upstreams, self._tunnel.config.upstreams, strict=True):
            so_far = counted.get(upstream.upstream)
            carried = [session for session in snapshot.sessions if session.upstream == upstream.upstream]
            cause = upstream.cause
            found.append(
                Server(
                    name=self._hide(upstream.name),
                    server=self._hide(upstream.server),
                    mode=upstream.mode,
                    phase=upstream.phase,
                    role=upstream.role,
                    priority=config.priority,
                    weight=config.weight,
                    problem=None if cause is None else self._hide(cause.line()),
                    sessions=len(upstream.sessions),
                    rtt_ms=min((session.rtt_ms for session in carried if session.rtt_ms is not None), default=None),
                    **{name: getattr(so_far, name, 0) for name in _COUNTED},
                    probes=upstream.probes,
                    stops_after=upstream.stops_after,
                    probe=upstream.probe,
                    can_be_probed=upstream.can_be_probed,
                    unreached=upstream.unreached,
                    unreached_why=upstream.unreached_why,
                )
            )
        return tuple(found)

    def _shown(self, said: S) -> S:
        texts = {name: value for name in said.__struct_fields__ if isinstance(value := getattr(said, name), str)}
        return msgspec.structs.replace(said, **{name: self._hide(text) for name, text in texts.items()})


def _probes(status: SupervisorStatus) -> ProbeCounts:
    counts = [upstream.probes for upstream in status.upstreams]
    names = ProbeCounts.__struct_fields__
    return ProbeCounts(*(sum(getattr(count, name) for count in counts) for name in names))


def _sessions(status: SupervisorStatus, snapshot: Snapshot) -> tuple[Session, ...]:
    carried = {session.session: session for session in snapshot.sessions}
    made = {session.session: session for session in status.sessions}
    return tuple(Session.of(carried.get(number), made.get(number)) for number in sorted(carried.keys() | made.keys()))


# What is shorter is no secret, and may be a part of any word.
_SECRET_LENGTH = 4


def _hiding(config: ClientConfig) -> Callable[[str], str]:
    """What takes out of a text that others wrote: the server's path and the resolvers', the token, the password."""
    upstreams = config.upstreams
    paths = [upstream.server.path for upstream in upstreams]
    paths += [resolver.path for resolver in config.resolvers if resolver.path != "/dns-query"]
    words = [*(upstream.token for upstream in upstreams), config.password, config.status_token]
    words += [path.strip("/") for path in paths]
    instead = {word: "..." for word in words if word is not None and len(word) >= _SECRET_LENGTH}
    instead |= {path: "/..." for path in paths if path != "/"}
    instead |= {str(upstream.server): upstream.server.authority for upstream in upstreams}
    for resolver in config.resolvers:
        instead[resolver.url] = f"https://{authority(resolver.host, resolver.port, 443)}"
    longest_first = sorted(instead.items(), key=lambda item: -len(item[0]))

    def hide(text: str) -> str:
        for secret, shown in longest_first:
            text = text.replace(secret, shown)
        return text

    return hide
