"""The facts of the moment for Prometheus: its text format, version 0.0.4."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

from ech_workers import _native
from ech_workers.overview import ProbeCounts

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from ech_workers.config import ServerConfig
    from ech_workers.served import TokenStatus
    from ech_workers.status.facts import Facts

__all__ = ["CONTENT_TYPE", "ObservedServer", "exposition", "server_exposition"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_PREFIX = "ech_workers_"


class ObservedServer(Protocol):
    """What is looked at of a server."""

    @property
    def config(self) -> ServerConfig: ...
    def snapshot(self) -> _native.ServerSnapshot: ...
    def tokens(self) -> Sequence[TokenStatus]: ...
    def unready(self) -> str | None: ...


class Metric(NamedTuple):
    """A family: its name without the prefix, and its samples by label (at most one, so that nothing grows)."""

    name: str
    kind: Literal["counter", "gauge"]
    help: str
    samples: dict[tuple[str, str] | None, float]


def exposition(facts: Facts) -> str:
    """Every metric, whether or not there is a session; what is not known has no sample."""
    return _written(_metrics(facts))


def server_exposition(server: ObservedServer) -> str:
    """Every metric of a server."""
    return _written(_server_metrics(server))


def _written(all_metrics: Iterable[Metric]) -> str:
    lines = []
    for metric in all_metrics:
        name = _PREFIX + metric.name
        lines += [f"# HELP {name} {metric.help}", f"# TYPE {name} {metric.kind}"]
        for label, value in metric.samples.items():
            labels = "" if label is None else f'{{{label[0]}="{_escaped(label[1])}"}}'
            lines.append(f"{name}{labels} {value!r}")
    return "\n".join(lines) + "\n"


def _metrics(facts: Facts) -> Iterator[Metric]:
    connections, sessions, ech = facts.connections, facts.sessions, facts.ech

    def gauge(name: str, about: str, value: float | None) -> Metric:
        return Metric(name, "gauge", about, {} if value is None else {None: value})

    def counter(name: str, about: str, value: float) -> Metric:
        return Metric(name, "counter", about, {None: value})

    yield Metric("info", "gauge", "1; the program's version.", {("version", _native.__version__): 1})
    yield gauge("up", "1 while a local connection would be carried, else 0.", int(facts.is_up))
    yield gauge("uptime_seconds", "Since the tunnel was started.", facts.uptime)
    yield gauge("sessions_wanted", "Sessions that are kept up.", facts.wanted)
    yield Metric(
        "upstream_up",
        "gauge",
        "1 for a server with a session, else 0; with several servers.",
        {("server", server.name): int(server.role != "down") for server in facts.servers},
    )
    yield Metric(
        "upstream_in_use",
        "gauge",
        "1 for a server that new connections go to, else 0; with several servers.",
        {("server", server.name): int(server.role == "in use") for server in facts.servers},
    )
    yield Metric(
        "upstream_unreached_total",
        "counter",
        "Connections that went on to another server because this one could not reach their target; with several servers.",
        {("server", server.name): server.unreached for server in facts.servers},
    )
    for field, name, about in _UPSTREAM_METRICS:
        by_server: dict[tuple[str, str] | None, float] = {
            ("server", server.name): getattr(server, field) for server in facts.servers
        }
        yield Metric(f"upstream_{name}", "counter", f"{about}; with several servers.", by_server)
    for name, about, fields in _UPSTREAM_PROBES:
        probed: dict[tuple[str, str] | None, float] = {
            ("server", server.name): sum(getattr(server.probes, field) for field in fields) for server in facts.servers
        }
        yield Metric(f"upstream_{name}", "counter", f"{about}; with several servers.", probed)
    yield Metric(
        "probes_total",
        "counter",
        "Exchanges of 64 KiB with a server that announces it, by what came of them.",
        {("outcome", name): getattr(facts.probes, name) for name in facts.probes.__struct_fields__},
    )
    states = [session.state for session in sessions]
    yield Metric(
        "sessions",
        "gauge",
        "Sessions by state; a retiring one takes no new streams.",
        {("state", state): states.count(state) for state in ("up", "retiring")},
    )
    yield gauge("streams", "Open streams of all sessions.", sum(session.streams or 0 for session in sessions))
    yield gauge(
        "sessions_with_ech",
        "Sessions whose server accepted ECH.",
        sum(session.ech == "accepted" for session in sessions),
    )
    trips: dict[tuple[str, str] | None, float] = {}
    for session in sessions:
        if session.rtt_ms is not None:
            label = ("address", session.address)
            trips[label] = min(trips.get(label, session.rtt_ms / 1000), session.rtt_ms / 1000)
    yield Metric("round_trip_seconds", "gauge", "The shortest of the sessions with this server address.", trips)
    layers: dict[tuple[str, str] | None, float] = {}
    for session in sessions:
        for layer in ("tcp", "tls", "websocket"):
            taken = getattr(session, f"{layer}_ms")
            if taken is not None:
                layers["layer", layer] = taken / 1000
    yield Metric("handshake_seconds", "gauge", "What each layer of the newest session took to come up.", layers)
    yield Metric(
        "bytes_total",
        "counter",
        "Payload by direction; up is from local programs to targets.",
        {("direction", "up"): facts.bytes_up, ("direction", "down"): facts.bytes_down},
    )
    yield gauge("connections_open", "Local connections now.", connections.open)
    yield gauge("connections_waiting", "Local connections that wait for a session.", connections.waiting)
    yield counter("connections_total", "Local connections so far.", connections.total)
    yield counter("connections_failed_total", "Local connections that failed.", connections.failed)
    yield counter(
        "connections_direct_total", "Local connections that went straight to their target.", connections.direct
    )
    yield counter("connections_blocked_total", "Local connections that a rule has blocked.", connections.blocked)
    yield counter("targets_failed_total", "Those whose target the server could not reach.", facts.targets_failed)
    yield counter("dials_total", "Attempts to make a session.", facts.dials_total)
    yield counter("dials_failed_total", "Attempts that failed.", facts.dials_failed)
    yield counter(
        "ech_retries_total", "Second attempts with an ECH configuration that the server handed over.", facts.ech_retries
    )
    yield gauge("ech_configuration_age_seconds", "Since the ECH configuration was learned.", ech.age if ech else None)
    yield gauge(
        "ech_configuration_expires_seconds",
        "Until the ECH configuration is stale; negative since then.",
        ech.expires_in if ech else None,
    )
    asked = [resolver for resolver in facts.resolvers if resolver.state != "untried"]
    yield Metric(
        "resolver_up",
        "gauge",
        "1 for a resolver whose last exchange succeeded, else 0; none for one that was not asked.",
        {("resolver", resolver.url): int(resolver.state == "ok") for resolver in asked},
    )
    yield Metric(
        "resolver_exchange_seconds",
        "gauge",
        "How long an exchange takes, connection included.",
        {("resolver", resolver.url): resolver.ms / 1000 for resolver in asked if resolver.ms is not None},
    )
    yield Metric(
        "resolver_answers_total",
        "counter",
        "Usable answers.",
        {("resolver", resolver.url): resolver.answers for resolver in facts.resolvers},
    )


_UPSTREAM_METRICS = (
    ("dials_total", "dials_total", "Attempts to make a session by server"),
    ("dials_failed", "dials_failed_total", "Those of them that failed"),
    ("ech_retries", "ech_retries_total", "Second attempts with an ECH configuration that the server handed over"),
    ("bytes_up", "bytes_up_total", "Payload from local programs to targets by server"),
    ("bytes_down", "bytes_down_total", "Payload from targets to local programs by server"),
)

_UPSTREAM_PROBES = (
    ("probes_total", "Probes by server", ProbeCounts.__struct_fields__),
    ("probes_passed_total", "Those of them that got through", ("passed",)),
)

_TOKEN_METRICS: tuple[tuple[str, str, Literal["counter", "gauge"], str], ...] = (
    ("sessions", "token_sessions", "gauge", "Sessions by token, which goes by its label."),
    ("sessions_total", "token_sessions_total", "counter", "The same so far."),
    ("bytes_up", "token_bytes_up_total", "counter", "Payload from clients to targets by token."),
    ("bytes_down", "token_bytes_down_total", "counter", "Payload from targets to clients by token."),
)


def _server_metrics(server: ObservedServer) -> Iterator[Metric]:
    now = server.snapshot()

    def one(name: str, kind: Literal["counter", "gauge"], about: str, value: float) -> Metric:
        return Metric(f"server_{name}", kind, about, {None: value})

    yield Metric("server_info", "gauge", "1; the program's version.", {("version", _native.__version__): 1})
    yield one("ready", "gauge", "1 while clients can use it, else 0.", int(server.unready() is None))
    yield one("uptime_seconds", "gauge", "Since it was started.", now.uptime)
    yield one("sessions", "gauge", "Sessions of clients with a token.", now.sessions)
    yield one("sessions_total", "counter", "The same so far.", now.sessions_total)
    yield one("streams", "gauge", "Open streams.", now.streams)
    yield one("streams_total", "counter", "Streams so far.", now.streams_total)
    yield one("streams_failed_total", "counter", "Streams whose target could not be reached.", now.streams_failed)
    yield one("echoes_total", "counter", "Streams of clients that see how much gets through.", now.echoes_total)
    yield Metric(
        "server_bytes_total",
        "counter",
        "Payload by direction; up is from clients to targets.",
        {("direction", "up"): now.bytes_up, ("direction", "down"): now.bytes_down},
    )
    tokens = server.tokens()
    for field, name, kind, about in _TOKEN_METRICS:
        samples: dict[tuple[str, str] | None, float] = {
            ("token", token.label): getattr(token, field) for token in tokens
        }
        yield Metric(f"server_{name}", kind, about, samples)
    yield one("handshakes_failed_total", "counter", "TLS handshakes that failed.", now.handshakes_failed)
    yield Metric(
        "server_handshakes_total",
        "counter",
        "TLS handshakes by what became of ECH.",
        {("ech", word): getattr(now, f"ech_{word}") for word in ("accepted", "rejected", "absent")},
    )
    ends: dict[tuple[str, str] | None, float] = {
        ("certificate", pair.name): pair.validity()[1] for pair in server.config.certificates
    }
    yield Metric("server_certificate_expires_at_seconds", "gauge", "The end of a certificate, since the epoch.", ends)


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
