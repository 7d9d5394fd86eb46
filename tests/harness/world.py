"""A world made for the supervisor: resolvers, servers and two clocks, all under the test's control.

Nothing waits for real: the loop runs in its own thread, and ``World.run`` lets so many seconds of the world's time pass.
"""

from __future__ import annotations

import base64
import contextlib
import heapq
import itertools
import threading
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import parse_qs, urlsplit

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset

from ech_workers import _native
from ech_workers.config import ClientConfig, Resolver, ServerAddress
from ech_workers.ech import Configuration, EchStore
from ech_workers.errors import (
    EngineClosed,
)
from ech_workers.supervisor import Supervisor

from .native import alternatives, stand_in

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import pytest

    from ech_workers.overview import SupervisorStatus
    from ech_workers.timing import Timing

EPOCH = 1_700_000_000.0


Failure = stand_in("Failure")
SessionLost = stand_in("SessionLost")
SessionsFull = stand_in("SessionsFull")
Echoed = stand_in("Echoed")
DialFailed = stand_in("DialFailed")
EchLearned = stand_in("EchLearned")
H2Chosen = stand_in("H2Chosen")
Fetched = stand_in("Fetched")
FetchFailed = stand_in("FetchFailed")
NameWanted = stand_in("NameWanted")
Woken = stand_in("Woken")
LogLine = stand_in("LogLine")
FetchPlan = stand_in("FetchPlan")
Plan = stand_in("DialPlan")


def failure(layer: str, code: str, message: str, **more: Any) -> Any:
    return Failure(layer=layer, code=code, message=message, **more)


def session_up(dial: int, session: int, **changes: Any) -> Any:
    fields: dict[str, Any] = {
        "address": "192.0.2.1:443",
        "public_name": "public.test",
        "profile": "firefox-120",
        "alpn": "http/1.1",
        "cipher": "TLS_AES_128_GCM_SHA256",
        "group": "X25519",
        "tcp_ms": 1.0,
        "tls_ms": 2.0,
        "websocket_ms": 3.0,
    }
    return stand_in("SessionUp")(dial=dial, session=session, **{**fields, **changes})


def dial_plan(**fields: Any) -> Any:
    if fields.get("ech") == bad_list("plan"):
        raise ValueError("ech: not for this plan")
    return Plan(**fields)


def parse(data: bytes) -> list[SimpleNamespace]:
    if b"unreadable" in data:
        raise ValueError("unreadable at byte 2")
    if b"unknown" in data:
        return [SimpleNamespace(public_name=None)]
    return [SimpleNamespace(public_name="public.test")]


def generate(config_id: int, public_name: str) -> tuple[bytes, bytes]:
    return b"PEM", ech_list(f"made up for {public_name}")


def ech_list(text: str) -> bytes:
    """Passes for an ECHConfigList as far as the length goes."""
    data = text.encode().ljust(4, b".")
    return len(data).to_bytes(2, "big") + data


def bad_list(kind: str) -> bytes:
    return ech_list(f"bad for {kind}")


@dataclass
class FakeResolver:
    """How one resolver behaves."""

    delay: float = 0.02
    lag: dict[str, float] = field(default_factory=dict)
    """How much longer an answer takes, by its type."""
    failure: tuple[str, str] | None = None
    """Layer and code, when no HTTP comes about."""
    rcode: dns.rcode.Rcode = dns.rcode.NOERROR
    zone: dict[tuple[str, str], list[str]] | None = None
    methods: tuple[str, ...] = ("POST", "GET")
    age: int | None = None
    garble: Callable[[bytes], bytes] = bytes
    asked: list[tuple[float, str, str]] = field(default_factory=list)


class World:
    """An engine, a server behind it, resolvers, and time."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.wall_offset = EPOCH - self.now
        self.until = self.now
        self.changed = threading.Condition()
        self.idle = False
        self.closed = False
        self.queue: list[tuple[float, int, Any]] = []
        self.numbers = itertools.count(1)
        self.zone: dict[tuple[str, str], list[str]] = {}
        self.resolvers = {f"{name}.dns": FakeResolver() for name in "abc"}
        self.answer: Callable[[Any], Any] = lambda plan: "up"
        self.dial_time = 0.1
        self.dials: list[tuple[float, Any]] = []
        self.verbs: list[tuple[Any, ...]] = []
        self.plan: Any | None = None
        self.reason: str | None = None
        self.retired_end = failure("yamux", "retired", "retired")
        self.live: dict[int, float] = {}
        self.upstreams: dict[int, int] = {}
        """Of each session, the number of its server."""
        self.tiers: list[list[int]] = []
        self.unanswered: dict[int, float] = {}
        """Since when a session owes a sign of life."""
        self.streams: dict[int, int] = {}
        """Of each session, how many were opened."""
        self.open_streams: dict[int, int] = {}
        """Of each session, how many are open."""
        self.received: dict[int, int] = {}
        """Of each session, how many bytes came over it."""
        self.waiting = 0
        """Connections that wait for a session."""
        self.rtt_ms: float | None = None
        """The round trip of every session, if it was measured."""
        self.echoes: list[tuple[float, int | None, int]] = []
        """Every probe: when, over which session (None: a connection of its own), to which server."""
        self.echo_outcome: Callable[[int], dict[str, Any] | None] = lambda upstream: {"outcome": "passed", "ms": 40.0}
        """What comes of a probe of a server, by its number; None: the outcome never comes."""
        self.path_ms: dict[int, float] = {}
        """The round trip of the path to a server, if it was measured."""
        self.mute: set[int] = set()
        """Servers that take everything and answer nothing."""
        self.resolved_names: dict[str, tuple[tuple[str, ...], float] | None] = {}
        """What was found out about names that the engine wanted; None: nobody answered."""
        self.supervisor: Supervisor | None = None
        self.thread: threading.Thread | None = None

    # the clocks

    def clock(self) -> float:
        return self.now

    def wall(self) -> float:
        return self.now + self.wall_offset

    # the engine

    def set_plan(self, plan: Any, upstream: int = 0) -> None:
        self.plan = plan
        self.verbs.append(("set_plan", plan))

    def dial(self, plan: Any) -> int:
        number = next(self.numbers)
        self.dials.append((self.now, plan))
        outcome = self.answer(plan)
        self.post(self.dial_time, lambda: self._finish(number, plan.upstream, outcome))
        return number

    def _finish(self, number: int, upstream: int, outcome: Any) -> list[Any]:
        events = []
        if isinstance(outcome, tuple):
            *events, outcome = outcome
        if isinstance(outcome, Failure):
            return [*events, DialFailed(dial=number, upstream=upstream, failure=outcome)]
        session = next(self.numbers)
        self.live[session] = self.now
        self.upstreams[session] = upstream
        changes = outcome if isinstance(outcome, dict) else {}
        return [*events, session_up(number, session, upstream=upstream, **changes)]

    def retire(self, session: int) -> None:
        self.verbs.append(("retire", session, self.now, len(self.live)))
        self.post(1.0, lambda: self.lose(session, self.retired_end))

    def probe(self, session: int | None = None) -> None:
        self.verbs.append(("probe", self.now))
        for asked in self.live if session is None else [session]:
            if self.upstreams[asked] in self.mute:
                self.unanswered.setdefault(asked, self.now)

    def echo(self, session: int | None, upstream: int) -> int:
        number = next(self.numbers)
        self.echoes.append((self.now, session, upstream))
        outcome = self.echo_outcome(upstream)
        if outcome is not None:
            self.post(0.5, Echoed(echo=number, upstream=upstream, **outcome))
        return number

    def echo_alone(self, plan: Any) -> int:
        return self.echo(None, plan.upstream)

    def route(self, tiers: Any) -> None:
        self.tiers = [[number for number, _ in tier] for tier in tiers]
        self.verbs.append(("route", self.tiers))

    def snapshot(self) -> Any:
        made = stand_in("SessionSnapshot")
        sessions = []
        for session in self.live:
            upstream = self.upstreams[session]
            since = self.unanswered.get(session) if upstream in self.mute else None
            sessions.append(
                made(
                    session=session,
                    upstream=upstream,
                    streams=self.open_streams.get(session, 0),
                    streams_total=self.streams.get(session, 0),
                    bytes_down=self.received.get(session, 0),
                    rtt_ms=self.rtt_ms,
                    path_ms=self.path_ms.get(upstream),
                    heard_ago=1000.0 if upstream in self.mute else 0.0,
                    unanswered=None if since is None else self.now - since,
                )
            )
        return stand_in("Snapshot")(sessions=tuple(sessions), connections_waiting=self.waiting)

    def forget_names(self) -> None:
        self.verbs.append(("forget_names",))

    def resolved(self, name: str, addresses: Any, ttl: float) -> None:
        self.resolved_names[name] = None if addresses is None else (tuple(addresses), ttl)
        self.verbs.append(("resolved", name))

    def unavailable(self, reason: str | None, code: str = "") -> None:
        self.reason = reason
        self.verbs.append(("unavailable", reason))

    def fetch(self, plan: Any) -> int:
        number = next(self.numbers)
        resolver = self.resolvers[plan.server_name]
        wire = plan.body or base64.urlsafe_b64decode(parse_qs(urlsplit(plan.path).query)["dns"][0] + "===")
        query = dns.message.from_wire(wire)
        (question,) = query.question
        name, kind = question.name.to_text(True), dns.rdatatype.to_text(question.rdtype)
        resolver.asked.append((self.now, name, kind))
        if resolver.failure:
            layer, code = resolver.failure
            self.post(resolver.delay, FetchFailed(fetch=number, failure=failure(layer, code, f"failed with {code}")))
            return number
        if plan.method not in resolver.methods:
            self.post(resolver.delay, Fetched(fetch=number, status=405, headers=[], http_version="h2", ms=1.0))
            return number
        response = dns.message.make_response(query)
        response.set_rcode(resolver.rcode)
        zone = self.zone if resolver.zone is None else resolver.zone
        records = zone.get((name, kind), [])
        for line in records:
            ttl, data = line.split(" ", 1)
            response.answer.append(dns.rrset.from_text(name + ".", int(ttl), "IN", kind, data))
        if not records and not any(owner == name for owner, _ in zone):
            response.set_rcode(resolver.rcode or dns.rcode.NXDOMAIN)
        headers = [("content-type", "application/dns-message")]
        if resolver.age is not None:
            headers.append(("age", str(resolver.age)))
        body = resolver.garble(response.to_wire())
        delay = resolver.delay + resolver.lag.get(kind, 0.0)
        ms = delay * 1000
        self.post(delay, Fetched(fetch=number, status=200, headers=headers, body=body, http_version="h2", ms=ms))
        return number

    def next_event(self, timeout: float | None) -> Any:
        assert timeout is not None
        with self.changed:
            limit = self.now + timeout
            while True:
                if self.closed:
                    raise EngineClosed
                due = self.queue[0][0] if self.queue else None
                if due is not None and due <= min(limit, self.until):
                    self.now = max(self.now, due)
                    event = heapq.heappop(self.queue)[2]
                    if callable(event):
                        for following in event() or ():
                            self._push(0.0, following)
                        continue
                    return event
                if limit <= self.until:
                    self.now = max(self.now, limit)
                    return None
                self.now = max(self.now, self.until)
                self.idle = True
                self.changed.notify_all()
                self.changed.wait()

    def wake(self) -> None:
        self.post(0.0, Woken())

    def post(self, delay: float, event: Any) -> None:
        with self.changed:
            self._push(delay, event)
            self.changed.notify_all()

    def _push(self, delay: float, event: Any) -> None:
        heapq.heappush(self.queue, (self.now + delay, next(self.numbers), event))

    # the test's side

    @property
    def used(self) -> int | None:
        """The server that a new stream would go to, as the engine chooses it."""
        with_session = {self.upstreams[session] for session in self.live}
        return next((number for tier in self.tiers for number in tier if number in with_session), None)

    def network_changes(self) -> None:
        assert self.supervisor is not None
        self.supervisor.network_changed()

    def lose_server(self, upstream: int) -> None:
        for session in [session for session in self.live if self.upstreams[session] == upstream]:
            for event in self.lose(session):
                self.post(0.0, event)

    def lose(self, session: int, why: Any = None) -> list[Any]:
        at = self.live.pop(session, None)
        if at is None:
            return []
        why = why or failure("tcp", "tcp-reset", "reset by the server")
        return [SessionLost(session=session, upstream=self.upstreams[session], failure=why, age=self.now - at)]

    def lose_all(self, why: Any = None) -> None:
        for session in list(self.live):
            for event in self.lose(session, why):
                self.post(0.0, event)

    def run(self, seconds: float) -> SupervisorStatus:
        assert self.supervisor is not None
        if self.thread is None:
            self.thread = threading.Thread(target=self.supervisor.run, daemon=True)
            self.thread.start()
        with self.changed:
            self.until += seconds
            self.idle = False
            self.changed.notify_all()
            assert self.changed.wait_for(lambda: self.idle or self.closed, 20), "the loop never rests"
        return self.supervisor.status()

    def close(self) -> None:
        with self.changed:
            self.closed = True
            self.changed.notify_all()
        if self.thread is not None:
            self.thread.join(10)
            assert not self.thread.is_alive()


@contextlib.contextmanager
def made_world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """A world whose events and plans are stand-ins, in the place of the native module's."""
    for name in alternatives("Event"):
        monkeypatch.setattr(_native, name, stand_in(name))
    monkeypatch.setattr(_native, "DialPlan", dial_plan)
    monkeypatch.setattr(_native, "FetchPlan", FetchPlan)
    monkeypatch.setattr(_native, "parse_ech_config_list", parse)
    monkeypatch.setattr(_native, "generate_ech_key", generate)
    made = World()
    made.zone = {
        ("secret.test", "HTTPS"): [https("one")],
        ("secret.test", "A"): ["60 192.0.2.1"],
        ("secret.test", "AAAA"): ["60 2001:db8::1"],
    }
    yield made
    made.close()


def https(text: str, *, ttl: int = 300, rest: str = "", target: str = ".", priority: int = 1) -> str:
    return f"{ttl} {priority} {target} ech={base64.b64encode(ech_list(text)).decode()} {rest}".rstrip()


def config(**changes: Any) -> ClientConfig:
    fields: dict[str, Any] = {
        "server": ServerAddress("secret.test", 443, "/ws"),
        "token": "t",
        "resolvers": tuple(
            Resolver(f"https://{name}.dns/dns-query", f"{name}.dns", 443, "/dns-query", ("192.0.2.53",))
            for name in "abc"
        ),
    }
    return ClientConfig(**{**fields, **changes})


def start(
    world: World,
    *,
    store: EchStore | None = None,
    timing: Timing | None = None,
    uniform: Callable[[], float] = lambda: 0.5,
    numbers: Sequence[int] | None = None,
    former: Sequence[int] = (),
    **changes: Any,
) -> Supervisor:
    made = Supervisor(
        config(**changes),
        cast("Any", world),
        store or EchStore(None, clock=world.wall),
        clock=world.clock,
        wall=world.wall,
        timing=timing,
        uniform=uniform,
        numbers=numbers,
        former=former,
    )
    world.supervisor = made
    return made


def refuse(layer: str, code: str, **more: Any) -> Any:
    return failure(layer, code, f"it failed: {code}", **more)


REFUSED = refuse("tcp", "tcp-refused")


def cached(world: World, configs: bytes | None = None, *, age: float = 10, ttl: float = 300) -> Configuration:
    return Configuration(
        configs=configs or ech_list("cached"),
        source="dns",
        origin="secret.test",
        fetched_at=world.wall() - age,
        ttl=ttl,
        target="secret.test",
    )
