"""The supervisor against a world made for it: resolvers, a server and two clocks, all under the test's control.

Nothing waits for real: the loop runs in its own thread, and ``World.run`` lets so many seconds of the world's time pass.
"""

from __future__ import annotations

import base64
import heapq
import itertools
import logging
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
import pytest

from ech_workers import _native
from ech_workers.config import ClientConfig, Resolver, ServerAddress
from ech_workers.ech import Addresses, Configuration, EchStore
from ech_workers.errors import (
    CertificateError,
    ConnectError,
    EchError,
    EngineClosed,
    ResolverError,
    SessionError,
    TokenError,
    TunnelError,
)
from ech_workers.supervisor import Supervisor, SupervisorStatus, Timing
from harness.native import stand_in

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

EPOCH = 1_700_000_000.0


Failure = stand_in("Failure")
SessionLost = stand_in("SessionLost")
DialFailed = stand_in("DialFailed")
EchLearned = stand_in("EchLearned")
H2Chosen = stand_in("H2Chosen")
Fetched = stand_in("Fetched")
FetchFailed = stand_in("FetchFailed")
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


# ---------------------------------------------------------------- the world


@dataclass
class FakeResolver:
    """How one resolver behaves."""

    delay: float = 0.02
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
        self.supervisor: Supervisor | None = None
        self.thread: threading.Thread | None = None

    # the clocks

    def clock(self) -> float:
        return self.now

    def wall(self) -> float:
        return self.now + self.wall_offset

    # the engine

    def set_plan(self, plan: Any) -> None:
        self.plan = plan
        self.verbs.append(("set_plan", plan))

    def dial(self, plan: Any) -> int:
        number = next(self.numbers)
        self.dials.append((self.now, plan))
        outcome = self.answer(plan)
        self.post(self.dial_time, lambda: self._finish(number, outcome))
        return number

    def _finish(self, number: int, outcome: Any) -> list[Any]:
        events = []
        if isinstance(outcome, tuple):
            *events, outcome = outcome
        if isinstance(outcome, Failure):
            return [*events, DialFailed(dial=number, failure=outcome)]
        session = next(self.numbers)
        self.live[session] = self.now
        return [*events, session_up(number, session, **(outcome if isinstance(outcome, dict) else {}))]

    def retire(self, session: int) -> None:
        self.verbs.append(("retire", session, self.now, len(self.live)))
        self.post(1.0, lambda: self.lose(session, self.retired_end))

    def probe(self) -> None:
        self.verbs.append(("probe", self.now))

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
        ms = resolver.delay * 1000
        self.post(
            resolver.delay, Fetched(fetch=number, status=200, headers=headers, body=body, http_version="h2", ms=ms)
        )
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

    def lose(self, session: int, why: Any = None) -> list[Any]:
        at = self.live.pop(session, None)
        if at is None:
            return []
        why = why or failure("tcp", "tcp-reset", "reset by the server")
        return [SessionLost(session=session, failure=why, age=self.now - at)]

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


EVENTS = (
    "SessionUp",
    "SessionLost",
    "DialFailed",
    "EchLearned",
    "H2Chosen",
    "Fetched",
    "FetchFailed",
    "Woken",
    "LogLine",
)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    for name in EVENTS:
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


def start(world: World, *, store: EchStore | None = None, timing: Timing | None = None, **changes: Any) -> Supervisor:
    made = Supervisor(
        config(**changes),
        cast("Any", world),
        store or EchStore(None, clock=world.wall),
        clock=world.clock,
        wall=world.wall,
        timing=timing,
        uniform=lambda: 0.5,
    )
    world.supervisor = made
    return made


def refuse(layer: str, code: str, **more: Any) -> Any:
    return failure(layer, code, f"it failed: {code}", **more)


REFUSED = refuse("tcp", "tcp-refused")


# ---------------------------------------------------------------- the way up


def test_a_cold_start_looks_up_dials_and_is_up(world: World) -> None:
    supervisor = start(world)
    status = world.run(1)
    assert status.phase == "up"
    assert status.cause is None
    ((at, plan),) = world.dials
    assert at - 1000.0 < 0.1
    assert plan.fields == {
        "server_name": "secret.test",
        "port": 443,
        "authority_port": 443,
        "path": "/ws",
        "token": "t",
        "addresses": plan.addresses,
        "ech": ech_list("one"),
        "profile": "firefox-120",
        "alpn": "auto",
        "h2_known": False,
        "mode": "yamux",
        "tcp_timeout": 5.0,
        "handshake_timeout": 10.0,
    }
    assert set(plan.addresses) == {"2001:db8::1", "192.0.2.1"}
    supervisor.wait_ready(1)
    assert status.ech is not None
    assert (status.ech.source, status.ech.origin, status.ech.public_name) == ("dns", "secret.test", "public.test")
    (session,) = status.sessions
    assert (session.ech, session.tls_ms) == ("accepted", 2.0)
    assert world.reason is None


def test_hints_are_used_before_the_addresses_are_known(world: World) -> None:
    world.zone["secret.test", "HTTPS"] = [https("one", rest="ipv4hint=192.0.2.7 ipv6hint=2001:db8::7 port=8443")]
    world.resolvers["a.dns"].delay = 0.01

    def slow_addresses(wire: bytes) -> bytes:
        world.resolvers["a.dns"].delay = 0.15
        return wire

    for resolver in world.resolvers.values():
        resolver.garble = slow_addresses
    world.zone = {("secret.test", "HTTPS"): world.zone["secret.test", "HTTPS"], ("secret.test", "TXT"): ["1 x"]}
    start(world)
    world.run(1)
    plan = world.dials[0][1]
    assert plan.addresses == ("2001:db8::7", "192.0.2.7")
    assert plan.port == 8443


def test_the_addresses_of_the_records_target_are_used(world: World) -> None:
    world.zone["secret.test", "HTTPS"] = [https("one", target="pool.test.")]
    world.zone["pool.test", "A"] = ["60 198.51.100.1"]
    start(world)
    assert world.run(2).phase == "up"
    assert world.dials[-1][1].addresses == ("198.51.100.1",)


def test_an_alias_is_followed_over_several_questions_up_to_a_limit(world: World) -> None:
    world.zone["secret.test", "HTTPS"] = ["300 0 one.test."]
    world.zone["one.test", "HTTPS"] = ["300 0 two.test."]
    world.zone["two.test", "HTTPS"] = [https("aliased")]
    world.zone["two.test", "A"] = ["60 198.51.100.2"]
    start(world)
    assert world.run(2).phase == "up"
    assert world.dials[-1][1].ech == ech_list("aliased")
    assert world.dials[-1][1].addresses == ("198.51.100.2",)


def test_an_alias_loop_is_an_error_and_not_a_loop(world: World) -> None:
    world.zone["secret.test", "HTTPS"] = ["300 0 one.test."]
    world.zone["one.test", "HTTPS"] = ["300 0 secret.test."]
    supervisor = start(world)
    status = world.run(3)
    assert status.cause is not None
    assert issubclass(status.cause.kind, ResolverError)
    assert "aliases" in status.cause.message
    assert all(resolver.failures == 0 for resolver in status.resolvers)
    with pytest.raises(ResolverError):
        supervisor.wait_ready(1)
    assert sum(len(resolver.asked) for resolver in world.resolvers.values()) < 150


def test_another_port_than_443_asks_for_its_own_name(world: World) -> None:
    world.zone["_8450._https.secret.test", "HTTPS"] = [https("port", target="secret.test.")]
    start(world, server=ServerAddress("secret.test", 8450, "/"))
    assert world.run(1).phase == "up"
    assert (world.dials[0][1].port, world.dials[0][1].ech) == (8450, ech_list("port"))


TWO_ENDPOINTS = [https("one", rest="port=8443", target="a.test."), https("two", target="b.test.", priority=2)]


def publish_two(world: World) -> None:
    world.zone[("secret.test", "HTTPS")] = TWO_ENDPOINTS
    world.zone[("a.test", "A")] = ["60 192.0.2.1"]
    world.zone[("b.test", "A")] = ["60 192.0.2.2"]


def only(address: str) -> Callable[[Any], Any]:
    return lambda plan: {"address": f"{address}:{plan.port}"} if address in plan.addresses else REFUSED


def test_a_records_port_changes_where_to_connect_to_and_not_the_authority(world: World) -> None:
    publish_two(world)
    start(world)
    assert world.run(1).phase == "up"
    plan = world.dials[-1][1]
    assert (plan.port, plan.authority_port, plan.server_name) == (8443, 443, "secret.test")


def test_an_endpoint_that_fails_leads_to_the_next_at_once(world: World) -> None:
    publish_two(world)
    world.answer = only("192.0.2.2")
    start(world)
    status = world.run(2)
    assert status.phase == "up"
    assert [(plan.port, plan.addresses, plan.ech) for _, plan in world.dials] == [
        (8443, ("192.0.2.1",), ech_list("one")),
        (443, ("192.0.2.2",), ech_list("two")),
    ]
    assert status.breaker == "closed"
    assert world.reason is None
    # A lost session is dialed where the last one was.
    world.lose_all()
    world.run(1)
    assert world.dials[-1][1].addresses == ("192.0.2.2",)
    assert len(world.dials) == 3


def test_when_every_endpoint_fails_all_are_tried_again_after_a_pause(world: World) -> None:
    publish_two(world)
    world.answer = lambda plan: REFUSED
    start(world)
    status = world.run(120)
    assert status.cause is not None
    assert status.cause.code == "tcp-refused"
    assert len(world.dials) < 30
    tried = [plan.addresses for _, plan in world.dials]
    assert tried.count(("192.0.2.1",)) > 3
    assert tried.count(("192.0.2.2",)) > 3
    world.answer = only("192.0.2.1")
    assert world.run(120).phase == "up"


def test_an_endpoint_without_addresses_leads_to_the_next(world: World) -> None:
    publish_two(world)
    del world.zone[("a.test", "A")]
    start(world)
    assert world.run(2).phase == "up"
    assert world.dials[-1][1].addresses == ("192.0.2.2",)


def test_endpoints_without_addresses_are_not_a_flood_of_questions(world: World) -> None:
    publish_two(world)
    del world.zone[("a.test", "A")], world.zone[("b.test", "A")]
    start(world)
    status = world.run(120)
    assert status.cause is not None
    assert status.cause.code == "resolver-no-name"
    assert sum(len(resolver.asked) for resolver in world.resolvers.values()) < 150
    world.zone[("b.test", "A")] = ["60 192.0.2.2"]
    assert world.run(120).phase == "up"


def test_a_new_look_at_the_record_begins_with_the_first_endpoint_again(world: World) -> None:
    publish_two(world)
    world.answer = only("192.0.2.2")
    start(world)
    world.run(2)
    world.answer = lambda plan: "up"
    world.run(300)
    world.lose_all()
    world.run(1)
    assert world.dials[-1][1].addresses == ("192.0.2.1",)


def test_retry_configurations_of_a_further_endpoint_stay_with_it(world: World, tmp_path: Path) -> None:
    publish_two(world)

    def answer(plan: Any) -> Any:
        if "192.0.2.1" in plan.addresses:
            return REFUSED
        if plan.ech == ech_list("two"):
            return (EchLearned(server_name="secret.test", configs=ech_list("new")), {"retried": True})
        return "up"

    world.answer = answer
    store = EchStore(tmp_path, clock=world.wall)
    start(world, store=store)
    assert world.run(2).phase == "up"
    world.lose_all()
    world.run(1)
    plan = world.dials[-1][1]
    assert (plan.ech, plan.addresses) == (ech_list("new"), ("192.0.2.2",))
    kept = EchStore(tmp_path, clock=world.wall).configuration("secret.test:443")
    assert kept is not None
    assert (kept.configs, kept.target) == (ech_list("new"), "b.test")
    assert [other.target for other in kept.others] == ["a.test"]


def test_of_another_names_record_only_the_configuration_is_used(world: World) -> None:
    del world.zone["secret.test", "HTTPS"]
    world.zone["cdn.test", "HTTPS"] = [https("cdn", target="edge.test.", rest="port=99 ipv4hint=203.0.113.1")]
    start(world, ech_domain="cdn.test")
    status = world.run(1)
    plan = world.dials[0][1]
    assert (plan.ech, plan.port) == (ech_list("cdn"), 443)
    assert "203.0.113.1" not in plan.addresses
    assert status.ech is not None
    assert status.ech.origin == "cdn.test"


def test_given_configuration_and_addresses_need_no_resolver(world: World) -> None:
    start(world, ech_config=ech_list("mine"), server_ips=("192.0.2.99",))
    status = world.run(1)
    assert status.phase == "up"
    assert world.dials[0][1].addresses == ("192.0.2.99",)
    assert status.ech is not None
    assert (status.ech.source, status.ech.age) == ("option", None)
    assert not any(resolver.asked for resolver in world.resolvers.values())


def test_without_ech_no_record_is_asked_for_and_none_is_used(world: World) -> None:
    start(world, ech=False)
    status = world.run(1)
    assert world.dials[0][1].ech is None
    assert status.ech is None
    assert not any(kind == "HTTPS" for resolver in world.resolvers.values() for _, _, kind in resolver.asked)


def test_an_address_as_server_is_dialed_as_it_is(world: World) -> None:
    start(world, ech=False, server=ServerAddress("192.0.2.77", 443, "/"))
    world.run(1)
    assert world.dials[0][1].addresses == ("192.0.2.77",)
    assert not any(resolver.asked for resolver in world.resolvers.values())


def test_the_wanted_number_of_sessions_is_kept_but_one_goes_first(world: World) -> None:
    start(world, sessions=4)
    status = world.run(2)
    assert len(status.sessions) == 4
    assert len({at for at, _ in world.dials}) == 2
    world.lose_all()
    status = world.run(10)
    assert (status.phase, len(status.sessions)) == ("up", 4)


def test_the_address_that_worked_last_is_tried_first(world: World) -> None:
    world.answer = lambda plan: {"address": "192.0.2.1:443"}
    start(world)
    world.run(10)
    world.lose_all()
    world.run(2)
    assert [plan.addresses[0] for _, plan in world.dials] == ["2001:db8::1", "192.0.2.1"]


# ---------------------------------------------------------------- resolvers


def test_the_next_resolver_is_asked_after_the_head_start_and_the_first_answer_wins(world: World) -> None:
    world.resolvers["a.dns"].delay = 3.0
    start(world, server_ips=("192.0.2.1",))
    status = world.run(1)
    assert status.phase == "up"
    assert world.resolvers["b.dns"].asked[0][0] == pytest.approx(1000.2)
    assert not world.resolvers["c.dns"].asked


def test_a_failing_resolver_is_passed_over_at_once_and_left_alone_for_a_while(world: World) -> None:
    world.resolvers["a.dns"].failure = ("tls", "tls-reset")
    world.zone["secret.test", "HTTPS"] = [https("one", ttl=12)]
    start(world, server_ips=("192.0.2.1",))
    status = world.run(1)
    assert status.phase == "up"
    assert world.resolvers["b.dns"].asked[0][0] == pytest.approx(1000.02)
    failing = status.resolvers[0]
    assert (failing.state, failing.failures) == ("failing", 1)
    assert "tls-reset" in (failing.error or "")
    assert status.resolvers[1].state == "ok"
    assert status.resolvers[2].state == "untried"
    world.run(300)
    assert len(world.resolvers["b.dns"].asked) > 20
    # 2 s doubled up to 120 s.
    assert len(world.resolvers["a.dns"].asked) < 10


def test_the_fastest_resolver_is_asked_first_next_time(world: World) -> None:
    world.resolvers["a.dns"].delay = 1.0
    world.zone["secret.test", "HTTPS"] = [https("one", ttl=20)]
    start(world, server_ips=("192.0.2.1",))
    world.run(5)
    before = len(world.resolvers["a.dns"].asked)
    world.run(60)
    assert len(world.resolvers["a.dns"].asked) == before
    assert len(world.resolvers["b.dns"].asked) >= 3


@pytest.mark.parametrize("rcode", [dns.rcode.SERVFAIL, dns.rcode.REFUSED])
def test_a_resolver_that_says_servfail_does_not_decide(world: World, rcode: dns.rcode.Rcode) -> None:
    world.resolvers["a.dns"].rcode = rcode
    start(world)
    assert world.run(1).phase == "up"


@pytest.mark.parametrize(
    "garble",
    [
        lambda wire: wire[:20],
        lambda wire: b"\x12\x34" + wire[2:],
        lambda wire: wire[:2] + bytes([wire[2] | 2]) + wire[3:],
        lambda wire: b"<html>",
        lambda wire: wire[:12] + b"\x05wrong" + wire[18:],
    ],
    ids=["cut", "other id", "truncated", "page", "other question"],
)
def test_a_hostile_answer_does_not_decide(world: World, garble: Callable[[bytes], bytes]) -> None:
    world.resolvers["a.dns"].garble = garble
    start(world)
    status = world.run(1)
    assert status.phase == "up"
    assert status.resolvers[0].state == "failing"


def test_a_resolver_that_filters_does_not_decide(world: World) -> None:
    world.resolvers["a.dns"].zone = {}
    start(world)
    status = world.run(1)
    assert status.phase == "up"
    assert world.dials[0][1].ech == ech_list("one")
    assert status.resolvers[0].state == "ok"


def test_a_resolver_that_blocks_by_address_does_not_decide(world: World) -> None:
    world.resolvers["a.dns"].zone = {
        **world.zone,
        ("secret.test", "A"): ["60 0.0.0.0"],
        ("secret.test", "AAAA"): ["60 ::"],
    }
    start(world)
    world.run(1)
    assert set(world.dials[0][1].addresses) <= {"2001:db8::1", "192.0.2.1"}


def test_a_resolver_that_wants_get_is_asked_by_get(world: World) -> None:
    for resolver in world.resolvers.values():
        resolver.methods = ("GET",)
    start(world)
    status = world.run(1)
    assert status.phase == "up"
    assert all(resolver.failures == 0 for resolver in status.resolvers)


def test_time_in_caches_shortens_the_life_of_an_answer(world: World) -> None:
    for resolver in world.resolvers.values():
        resolver.age = 280
    start(world)
    status = world.run(0.5)
    assert status.ech is not None
    assert status.ech.expires_in == pytest.approx(20, abs=1)


def test_all_resolvers_down_is_said_with_each_ones_reason_and_ends_when_one_is_back(world: World) -> None:
    for resolver in world.resolvers.values():
        resolver.failure = ("tcp", "tcp-unreachable")
    supervisor = start(world)
    status = world.run(1)
    assert status.cause is not None
    assert issubclass(status.cause.kind, ResolverError)
    for name in "abc":
        assert f"{name}.dns" in status.cause.message
    assert status.phase == "waiting"
    assert status.next_attempt_in is not None
    assert world.reason == status.cause.line()
    with pytest.raises(ResolverError):
        supervisor.wait_ready(5)
    assert world.dials == []
    world.run(120)
    world.resolvers["b.dns"].failure = None
    status = world.run(60)
    assert status.phase == "up"
    assert status.cause is None
    assert world.reason is None


# ---------------------------------------------------------------- no configuration


def test_no_https_record_is_an_error_and_never_a_connection_in_clear(world: World) -> None:
    del world.zone["secret.test", "HTTPS"]
    supervisor = start(world)
    status = world.run(5)
    assert status.cause is not None
    assert issubclass(status.cause.kind, EchError)
    assert status.cause.code == "ech-no-config"
    assert "--ech-domain" in status.cause.line()
    assert world.dials == []
    with pytest.raises(EchError):
        supervisor.wait_ready(1)


def test_a_record_without_ech_is_an_error_too(world: World) -> None:
    world.zone["secret.test", "HTTPS"] = ["300 1 . alpn=h2"]
    start(world)
    status = world.run(1)
    assert status.cause is not None
    assert status.cause.code == "ech-no-config"
    assert world.dials == []


@pytest.mark.parametrize("text", ["unreadable", "unknown version"])
def test_a_configuration_that_cannot_be_used_is_an_error(world: World, text: str) -> None:
    world.zone["secret.test", "HTTPS"] = [https(text)]
    start(world)
    status = world.run(1)
    assert status.cause is not None
    assert issubclass(status.cause.kind, EchError)
    assert status.cause.code == "ech-config-invalid"
    assert world.dials == []


def test_a_name_that_does_not_exist_is_said_so(world: World) -> None:
    world.zone.clear()
    start(world, ech_config=ech_list("mine"))
    status = world.run(1)
    assert status.cause is not None
    assert status.cause.code == "resolver-no-name"
    assert "secret.test does not exist" in status.cause.message


def test_a_record_published_later_is_found(world: World) -> None:
    published = world.zone.pop(("secret.test", "HTTPS"))
    start(world)
    world.run(60)
    world.zone["secret.test", "HTTPS"] = published
    assert world.run(60).phase == "up"


def test_a_cached_configuration_that_no_plan_accepts_is_looked_up_again(world: World) -> None:
    store = EchStore(None, clock=world.wall)
    store.store("secret.test:443", cached(world, bad_list("plan")))
    start(world, store=store)
    assert world.run(2).phase == "up"
    assert world.dials[0][1].ech == ech_list("one")


def test_a_published_configuration_that_no_plan_accepts_is_an_error(world: World) -> None:
    world.zone["secret.test", "HTTPS"] = [https("bad for plan")]
    supervisor = start(world)
    status = world.run(5)
    assert status.cause is not None
    assert issubclass(status.cause.kind, EchError)
    with pytest.raises(EchError):
        supervisor.wait_ready(1)
    asked = sum(kind == "HTTPS" for resolver in world.resolvers.values() for _, _, kind in resolver.asked)
    assert asked < 6


def test_bootstrap_asks_the_server_itself_when_no_resolver_answers(world: World, tmp_path: Path) -> None:
    for resolver in world.resolvers.values():
        resolver.failure = ("tcp", "tcp-unreachable")
    made_up = ech_list("made up for public.test")
    world.answer = lambda plan: (EchLearned(server_name="secret.test", configs=ech_list("true")), {"retried": True})
    supervisor = start(
        world, store=EchStore(tmp_path, clock=world.wall), ech_bootstrap="public.test", server_ips=("192.0.2.1",)
    )
    status = world.run(2)
    assert status.phase == "up"
    supervisor.wait_ready(1)
    assert world.dials[0][1].ech == made_up
    world.answer = lambda plan: "up"
    world.run(10)
    world.lose_all()
    world.run(1)
    assert world.dials[-1][1].ech == ech_list("true")
    kept = EchStore(tmp_path, clock=world.wall).configuration("secret.test:443")
    assert kept is not None
    assert kept.configs == ech_list("true")


def test_bootstrap_is_not_used_while_a_resolver_answers(world: World) -> None:
    start(world, ech_bootstrap="public.test")
    world.run(1)
    assert [plan.ech for _, plan in world.dials] == [ech_list("one")]


# ---------------------------------------------------------------- the cache


def cached(world: World, configs: bytes | None = None, *, age: float = 10, ttl: float = 300) -> Configuration:
    return Configuration(
        configs=configs or ech_list("cached"),
        source="dns",
        origin="secret.test",
        fetched_at=world.wall() - age,
        ttl=ttl,
        target="secret.test",
    )


def test_a_warm_cache_is_enough_when_every_resolver_is_down(world: World, tmp_path: Path) -> None:
    before = EchStore(tmp_path, clock=world.wall)
    before.store("secret.test:443", cached(world, age=100_000))
    before.store_addresses("secret.test", Addresses(("192.0.2.5",), world.wall() - 100_000, 60))
    for resolver in world.resolvers.values():
        resolver.failure = ("tcp", "tcp-timeout")
        resolver.delay = 5.0
    supervisor = start(world, store=EchStore(tmp_path, clock=world.wall))
    status = world.run(0.2)
    assert status.phase == "up"
    assert world.dials[0][0] == 1000.0
    assert status.ech is not None
    assert status.ech.expires_in is not None
    assert status.ech.expires_in < 0
    assert status.ech.refreshing
    supervisor.wait_ready(1)
    status = world.run(30)
    assert (status.phase, status.cause) == ("up", None)
    assert status.ech is not None
    assert "no resolver answers" in (status.ech.problem or "")


def test_a_stale_configuration_is_used_while_a_new_one_is_looked_for(world: World) -> None:
    store = EchStore(None, clock=world.wall)
    store.store("secret.test:443", cached(world, age=1000))
    start(world, store=store, server_ips=("192.0.2.1",))
    status = world.run(1)
    assert world.dials[0][1].ech == ech_list("cached")
    assert status.ech is not None
    assert status.ech.age is not None
    assert status.ech.age <= 1
    world.lose_all()
    world.run(10)
    assert world.dials[-1][1].ech == ech_list("one")


def test_a_fresh_configuration_is_not_asked_for_until_shortly_before_it_expires(world: World) -> None:
    store = EchStore(None, clock=world.wall)
    store.store("secret.test:443", cached(world, age=100, ttl=300))
    start(world, store=store, server_ips=("192.0.2.1",))
    world.run(139)
    assert not world.resolvers["a.dns"].asked
    world.run(2)
    assert len(world.resolvers["a.dns"].asked) == 1
    # From then on always before its end, never in a hurry.
    for _ in range(20):
        status = world.run(60)
        assert status.ech is not None
        assert status.ech.expires_in is not None
        assert status.ech.expires_in > 0
    assert len(world.resolvers["a.dns"].asked) <= 7


def test_a_ttl_of_a_second_does_not_become_a_flood(world: World) -> None:
    world.zone["secret.test", "HTTPS"] = [https("one", ttl=0)]
    start(world, server_ips=("192.0.2.1",))
    assert world.run(100).phase == "up"
    assert len(world.resolvers["a.dns"].asked) <= 11


def test_what_another_process_looked_up_is_used(world: World, tmp_path: Path) -> None:
    start(world, store=EchStore(tmp_path, clock=world.wall), server_ips=("192.0.2.1",))
    world.run(1)
    other = EchStore(tmp_path, clock=world.wall)
    other.store("secret.test:443", cached(world, ech_list("other"), age=-200))
    world.lose_all()
    world.run(10)
    assert world.dials[-1][1].ech == ech_list("other")


def test_the_cache_of_another_ech_domain_is_not_used(world: World) -> None:
    world.zone["cdn.test", "HTTPS"] = [https("cdn")]
    store = EchStore(None, clock=world.wall)
    store.store("secret.test:443", cached(world))
    start(world, store=store, ech_domain="cdn.test")
    assert world.run(1).phase == "up"
    assert world.dials[0][1].ech == ech_list("cdn")


# ---------------------------------------------------------------- what is learned


def test_retry_configurations_are_used_for_the_next_dial_and_kept(world: World, tmp_path: Path) -> None:
    world.answer = lambda plan: (EchLearned(server_name="secret.test", configs=ech_list("retry")), {"retried": True})
    store = EchStore(tmp_path, clock=world.wall)
    start(world, store=store)
    status = world.run(1)
    assert status.sessions[0].retried
    assert status.ech is not None
    assert status.ech.source == "retry"
    world.answer = lambda plan: "up"
    world.lose_all()
    # The published record is still the old one; its refresh must not bring it back.
    world.run(4000)
    world.lose_all()
    world.run(1)
    assert [plan.ech for _, plan in world.dials[1:]] == [ech_list("retry")] * (len(world.dials) - 1)
    kept = EchStore(tmp_path, clock=world.wall).configuration("secret.test:443")
    assert kept is not None
    assert kept.configs == ech_list("retry")
    world.zone["secret.test", "HTTPS"] = [https("two")]
    world.run(4000)
    world.lose_all()
    world.run(1)
    assert world.dials[-1][1].ech == ech_list("two")


def test_retry_configurations_replace_the_options_own(world: World) -> None:
    world.answer = lambda plan: (EchLearned(server_name="secret.test", configs=ech_list("retry")), "up")
    start(world, ech_config=ech_list("mine"))
    world.run(10)
    world.lose_all()
    world.run(1)
    assert [plan.ech for _, plan in world.dials] == [ech_list("mine"), ech_list("retry")]


def test_retry_configurations_known_from_another_rejection_are_used_for_this_option_too(world: World) -> None:
    store = EchStore(None, clock=world.wall)
    store.learn("secret.test:443", ech_list("retry"), used=cached(world))
    world.answer = lambda plan: (EchLearned(server_name="secret.test", configs=ech_list("retry")), "up")
    start(world, store=store, ech_config=ech_list("mine"))
    world.run(10)
    world.lose_all()
    world.run(1)
    assert [plan.ech for _, plan in world.dials] == [ech_list("mine"), ech_list("retry")]


def test_retry_configurations_for_another_name_are_not_ours(world: World) -> None:
    world.answer = lambda plan: (EchLearned(server_name="other.test", configs=ech_list("retry")), "up")
    start(world)
    world.run(10)
    world.lose_all()
    world.run(1)
    assert world.dials[-1][1].ech == ech_list("one")


def test_a_second_rejection_is_tried_once_more_with_what_came_with_it(world: World) -> None:
    failures = iter([refuse("ech", "ech-rejected", retry_configs=ech_list("third"))])
    world.answer = lambda plan: next(failures, "up")
    supervisor = start(world)
    status = world.run(1)
    assert status.phase == "up"
    assert world.dials[-1][1].ech == ech_list("third")
    supervisor.wait_ready(1)


def test_a_server_that_always_rejects_is_not_hammered(world: World) -> None:
    counter = itertools.count()
    world.answer = lambda plan: refuse("ech", "ech-rejected", retry_configs=ech_list(f"retry {next(counter)}"))
    supervisor = start(world)
    status = world.run(60)
    assert len(world.dials) < 12
    assert status.cause is not None
    assert issubclass(status.cause.kind, EchError)
    with pytest.raises(EchError):
        supervisor.wait_ready(1)


def test_a_server_that_chooses_h2_is_met_with_the_websocket_hello_from_then_on(world: World, tmp_path: Path) -> None:
    world.answer = lambda plan: "up" if plan.h2_known else (H2Chosen(server_name="secret.test"), "up")
    start(world, store=EchStore(tmp_path, clock=world.wall))
    world.run(10)
    world.lose_all()
    world.run(1)
    assert [plan.h2_known for _, plan in world.dials] == [False, True]
    assert EchStore(tmp_path, clock=world.wall).is_h2_known("secret.test:443")


# ---------------------------------------------------------------- each cause


@pytest.mark.parametrize(
    ("layer", "code", "kind"),
    [
        ("tcp", "tcp-refused", ConnectError),
        ("tcp", "tcp-timeout", ConnectError),
        ("certificate", "certificate-unknown-issuer", CertificateError),
        ("certificate", "certificate-expired", CertificateError),
        ("token", "token-rejected", TokenError),
        ("ech", "ech-disabled", EchError),
        ("yamux", "yamux-protocol", SessionError),
    ],
)
def test_each_cause_is_raised_shown_given_to_programs_and_logged_once(
    world: World, layer: str, code: str, kind: type[TunnelError], caplog: pytest.LogCaptureFixture
) -> None:
    world.answer = lambda plan: refuse(layer, code)
    supervisor = start(world)
    with caplog.at_level(logging.WARNING, "ech_workers"):
        status = world.run(1)
        with pytest.raises(kind) as caught:
            supervisor.wait_ready(5)
        assert caught.value.code == code
        assert status.cause is not None
        assert issubclass(status.cause.kind, kind)
        assert status.phase in ("waiting", "connecting")
        assert "secret.test" in status.cause.message
        assert world.reason == status.cause.line()
        world.run(300)
    assert [record.getMessage() for record in caplog.records].count(status.cause.line()) == 1
    assert len(caplog.records) == 1
    assert supervisor.status().cause_age == pytest.approx(300, abs=2)
    world.answer = lambda plan: "up"
    status = world.run(120)
    assert status.phase == "up"
    assert status.cause is None
    assert world.reason is None


def test_another_cause_is_logged_when_it_comes(world: World, caplog: pytest.LogCaptureFixture) -> None:
    answers = itertools.chain([REFUSED] * 4, itertools.repeat(refuse("token", "token-rejected")))
    world.answer = lambda plan: next(answers)
    start(world)
    with caplog.at_level(logging.WARNING, "ech_workers"):
        world.run(100)
    assert [record.getMessage().split(":")[0] for record in caplog.records] == ["tcp", "token"]


def test_the_source_of_the_configuration_is_named_when_the_server_has_no_ech(world: World) -> None:
    world.answer = lambda plan: refuse("ech", "ech-disabled")
    start(world)
    status = world.run(1)
    assert status.cause is not None
    assert "the HTTPS record of secret.test" in status.cause.message


def test_a_dial_with_cached_records_that_fails_looks_them_up_before_it_is_an_error(world: World) -> None:
    store = EchStore(None, clock=world.wall)
    store.store("secret.test:443", cached(world))
    store.store_addresses("secret.test", Addresses(("192.0.2.66",), world.wall(), 300))
    world.answer = lambda plan: "up" if "192.0.2.1" in plan.addresses else REFUSED
    supervisor = start(world, store=store)
    status = world.run(1)
    assert status.phase == "up"
    supervisor.wait_ready(1)
    assert not any(verb == "unavailable" and reason for verb, reason, *_ in world.verbs if verb == "unavailable")

    again = EchStore(None, clock=world.wall)
    again.store("secret.test:443", cached(world, ech_list("gone")))
    world.answer = lambda plan: refuse("ech", "ech-disabled") if plan.ech == ech_list("gone") else "up"
    world.close()
    world.closed, world.thread, world.dials = False, None, []
    world.live.clear()
    start(world, store=again)
    assert world.run(1).phase == "up"
    assert [plan.ech for _, plan in world.dials] == [ech_list("gone"), ech_list("one")]


def test_a_configuration_the_handshake_cannot_use_is_not_tried_again_from_the_cache(world: World) -> None:
    store = EchStore(None, clock=world.wall)
    store.store("secret.test:443", cached(world, ech_list("odd")))
    world.answer = lambda plan: refuse("ech", "ech-config-invalid") if plan.ech == ech_list("odd") else "up"
    start(world, store=store)
    assert world.run(1).phase == "up"
    assert [plan.ech for _, plan in world.dials] == [ech_list("odd"), ech_list("one")]


# ---------------------------------------------------------------- backoff and breaker


@pytest.mark.parametrize(("asked", "waited"), [(120.0, 120.0), (86400.0, 3600.0)])
def test_a_server_that_asks_to_wait_is_not_dialed_before(world: World, asked: float, waited: float) -> None:
    world.answer = lambda plan: refuse("websocket", "websocket-busy", retry_after=asked)
    start(world)
    status = world.run(2 * waited - 10)
    first, second = (at for at, _ in world.dials)
    assert waited <= second - first < waited + 1
    assert status.cause is not None
    assert status.cause.code == "websocket-busy"


def test_pauses_between_failed_dials_grow_and_the_breaker_opens(world: World) -> None:
    world.answer = lambda plan: REFUSED
    start(world, server_ips=("192.0.2.1",), sessions=8)
    world.run(0.3)
    status = world.run(20)
    assert status.breaker == "open"
    status = world.run(400)
    gaps = [later - earlier - world.dial_time for (earlier, _), (later, _) in itertools.pairwise(world.dials)]
    assert gaps[:4] == pytest.approx([0.5, 1, 2, 4], abs=0.2)
    assert gaps[4:7] == pytest.approx([15, 30, 60], abs=0.2)
    assert max(gaps) <= 61
    assert status.breaker == "open"
    assert status.next_attempt_in is not None
    assert 0 <= status.next_attempt_in <= 60


def test_one_dial_probes_when_the_breaker_was_open_and_success_closes_it(world: World) -> None:
    world.answer = lambda plan: REFUSED
    start(world, server_ips=("192.0.2.1",), sessions=4)
    world.run(20)
    world.answer = lambda plan: "up"
    before = len(world.dials)
    world.dial_time = 5.0
    while len(world.dials) == before:
        status = world.run(0.5)
    assert status.breaker == "half-open"
    assert len(world.dials) == before + 1
    status = world.run(20)
    assert (status.breaker, status.phase, status.failures) == ("closed", "up", 0)
    assert len(status.sessions) == 4


def test_what_does_not_pass_by_itself_is_tried_rarely(world: World) -> None:
    world.answer = lambda plan: refuse("token", "token-rejected")
    start(world)
    world.run(300)
    assert 5 <= len(world.dials) <= 8


def test_local_programs_are_told_only_when_there_is_no_session_at_all(world: World) -> None:
    start(world, sessions=2)
    world.run(10)
    world.answer = lambda plan: REFUSED
    session = next(iter(world.live))
    for event in world.lose(session):
        world.post(0.0, event)
    status = world.run(5)
    assert status.phase == "degraded"
    assert status.cause is not None
    assert world.reason is None
    world.lose_all()
    world.run(5)
    assert world.reason is not None
    world.answer = lambda plan: "up"
    world.run(120)
    assert world.reason is None


# ---------------------------------------------------------------- sessions


def test_a_lost_session_is_replaced_at_once_without_alarm(world: World, caplog: pytest.LogCaptureFixture) -> None:
    start(world)
    world.run(100)
    lost_at = world.now
    with caplog.at_level(logging.WARNING, "ech_workers"):
        world.lose_all()
        status = world.run(1)
    assert status.phase == "up"
    assert world.dials[-1][0] == pytest.approx(lost_at)
    assert not caplog.records
    assert world.reason is None


GO_AWAY = failure("yamux", "yamux-go-away", "the server takes no new streams on this session")


@pytest.mark.parametrize("age", [1, 100])
def test_a_server_that_stops_is_no_failure_and_another_session_follows_at_once(
    world: World, caplog: pytest.LogCaptureFixture, age: float
) -> None:
    start(world)
    world.run(age)
    stopped_at = world.now
    caplog.clear()
    with caplog.at_level(logging.INFO, "ech_workers"):
        world.lose_all(GO_AWAY)
        status = world.run(1)
    assert world.dials[-1][0] == pytest.approx(stopped_at)
    assert (status.phase, status.cause, status.failures, status.breaker) == ("up", None, 0, "closed")
    assert {record.levelname for record in caplog.records} == {"INFO"}
    assert "secret.test:443 is stopping: it takes no new streams" in caplog.text
    assert world.reason is None


def test_a_server_that_goes_on_stopping_is_not_dialed_without_a_pause(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    def stops(plan: Any) -> str:
        world.post(0.2, lambda: world.lose_all(GO_AWAY))
        return "up"

    world.answer = stops
    start(world)
    with caplog.at_level(logging.INFO, "ech_workers"):
        status = world.run(120)
    assert 4 < len(world.dials) < 15
    assert (status.failures, status.breaker) == (0, "closed")
    assert caplog.text.count("is stopping") == 1


def test_a_go_away_for_an_error_counts_as_a_failure_when_the_session_is_young(world: World) -> None:
    broken = failure("yamux", "yamux-protocol", "the server gave up the session: ProtocolError")

    def breaks(plan: Any) -> str:
        world.post(0.2, lambda: world.lose_all(broken))
        return "up"

    world.answer = breaks
    start(world)
    assert world.run(120).cause is not None


def test_a_replacement_is_told_after_a_loss_and_not_otherwise(world: World, caplog: pytest.LogCaptureFixture) -> None:
    start(world, timing=Timing(session_age=600))
    with caplog.at_level(logging.INFO, "ech_workers"):
        world.run(100)
        world.lose_all()
        world.run(1800)
    told = [record.getMessage().split()[1] for record in caplog.records if record.getMessage().startswith("session")]
    assert told == ["up:", "lost", "up:"]


def test_sessions_that_die_young_do_not_go_round_without_a_pause(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    def lose() -> None:
        world.lose_all(refuse("yamux", "yamux-protocol"))

    def dies(plan: Any) -> str:
        world.post(0.2, lose)
        return "up"

    world.answer = dies
    start(world)
    with caplog.at_level(logging.WARNING, "ech_workers"):
        status = world.run(120)
    assert len(world.dials) < 15
    assert status.cause is None or status.cause.code == "yamux-protocol"
    assert len(caplog.records) == 1
    world.answer = lambda plan: "up"
    assert world.run(120).phase == "up"


@pytest.mark.parametrize("sessions", [1, 3])
def test_sessions_that_are_cut_again_and_again_are_soon_back(world: World, sessions: int) -> None:
    """A path that cuts everything every two seconds: the server can be reached, so nothing waits for long."""
    start(world, sessions=sessions)
    for _ in range(10):
        world.run(2)
        world.lose_all()
        assert world.run(20).phase == "up"
    for _ in range(3):
        world.run(2)
        world.lose_all()
        status = world.run(2)
        assert status.breaker == "closed"


def test_a_session_is_replaced_before_it_is_old_and_its_successor_is_up_first(world: World) -> None:
    start(world, timing=Timing(session_age=600))
    world.run(1)
    (first,) = world.live
    status = world.run(620)
    (retired,) = (verb for verb in world.verbs if verb[0] == "retire")
    assert retired[1] == first
    assert retired[2] == pytest.approx(1600, abs=2)
    assert retired[3] == 2
    (session,) = status.sessions
    assert session.session != first
    assert status.phase == "up"
    world.run(3000)
    assert 5 <= len(world.dials) <= 7


def test_a_session_whose_successor_cannot_be_had_is_kept(world: World, caplog: pytest.LogCaptureFixture) -> None:
    start(world, timing=Timing(session_age=600))
    world.run(1)
    world.answer = lambda plan: REFUSED
    with caplog.at_level(logging.WARNING, "ech_workers"):
        status = world.run(900)
    assert (status.phase, len(status.sessions), world.reason) == ("up", 1, None)
    assert not any(verb[0] == "retire" for verb in world.verbs)
    assert 2 <= len(world.dials) <= 15
    assert not caplog.records
    world.answer = lambda plan: "up"
    world.run(100)
    assert sum(verb[0] == "retire" for verb in world.verbs) == 1


def test_a_session_lost_while_its_successor_is_dialed_is_not_replaced_twice(world: World) -> None:
    start(world, timing=Timing(session_age=600))
    world.run(1)
    world.dial_time = 10.0
    world.run(602)
    world.lose_all()
    status = world.run(30)
    assert len(status.sessions) == 1
    assert len(world.dials) == 2


def test_a_retired_session_that_ends_starts_nothing(world: World) -> None:
    start(world, timing=Timing(session_age=600))
    world.run(700)
    assert len(world.dials) == 2
    assert len(world.live) == 1


def test_a_retired_session_that_is_cut_is_told_in_the_log_and_starts_nothing(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    world.retired_end = failure("tcp", "tcp-reset", "the connection was reset")
    start(world, timing=Timing(session_age=600))
    world.run(700)
    assert len(world.dials) == 2
    assert "a session that was to end with its last stream was lost: the connection was reset" in caplog.messages


# ---------------------------------------------------------------- sleep


def test_after_a_sleep_every_session_is_renewed_and_nothing_waits(world: World) -> None:
    start(world, sessions=2)
    world.run(20)
    before = set(world.live)
    world.wall_offset += 3600
    status = world.run(15)
    assert len(status.sessions) == 2
    assert not before & set(world.live)
    assert {verb[1] for verb in world.verbs if verb[0] == "retire"} == before
    assert any(verb[0] == "probe" for verb in world.verbs)


def test_after_a_sleep_a_long_pause_is_over(world: World) -> None:
    world.answer = lambda plan: REFUSED
    start(world)
    world.run(200)
    world.answer = lambda plan: "up"
    world.wall_offset += 3600
    assert world.run(11).phase == "up"


def test_a_process_that_was_stopped_renews_its_sessions(world: World) -> None:
    start(world)
    world.run(20)
    before = set(world.live)
    with world.changed:
        world.until += 100
        world.now += 100
    world.run(20)
    assert not before & set(world.live)


def test_a_clock_set_back_or_by_a_second_changes_nothing(world: World) -> None:
    start(world)
    world.run(20)
    for step in (-3600.0, 1.5, -2.0):
        world.wall_offset += step
        status = world.run(30)
        assert status.phase == "up"
    assert len(world.dials) == 1


# ---------------------------------------------------------------- simple mode


def test_simple_mode_sets_the_plan_and_verifies_it_with_one_dial(world: World) -> None:
    start(world, mode="simple", sessions=3)
    status = world.run(5)
    assert status.phase == "up"
    assert len(world.dials) == 1
    assert world.plan is not None
    assert world.plan.mode == "simple"
    world.lose_all(failure("websocket", "closed", "closed"))
    assert world.run(30).phase == "up"
    assert len(world.dials) == 1


def test_simple_mode_follows_new_configurations(world: World) -> None:
    start(world, mode="simple")
    world.run(5)
    world.post(0.0, EchLearned(server_name="secret.test", configs=ech_list("retry")))
    world.run(1)
    assert world.plan is not None
    assert world.plan.ech == ech_list("retry")


def test_simple_mode_finds_out_whether_one_failed_connection_means_all(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    start(world, mode="simple")
    world.run(5)
    with caplog.at_level(logging.WARNING, "ech_workers"):
        for _ in range(20):
            world.post(0.0, DialFailed(dial=0, failure=REFUSED))
        assert world.run(1).phase == "up"
        assert world.reason is None
        world.answer = lambda plan: REFUSED
        for _ in range(20):
            world.post(0.0, DialFailed(dial=0, failure=REFUSED))
        status = world.run(2)
    assert status.phase in ("waiting", "connecting")
    assert status.cause is not None
    assert issubclass(status.cause.kind, ConnectError)
    assert world.reason is not None
    assert len(caplog.records) == 2
    world.answer = lambda plan: "up"
    assert world.run(60).phase == "up"
    assert world.reason is None


# ---------------------------------------------------------------- other threads, the end


def test_waiting_ends_when_the_session_is_up(world: World) -> None:
    supervisor = start(world)
    done = threading.Event()

    def wait() -> None:
        supervisor.wait_ready(10)
        done.set()

    waiter = threading.Thread(target=wait)
    waiter.start()
    world.run(1)
    assert done.wait(5)
    waiter.join()


def test_waiting_too_long_says_what_is_still_going_on(world: World) -> None:
    for resolver in world.resolvers.values():
        resolver.delay = 100.0
    supervisor = start(world)
    world.run(0.5)
    with pytest.raises(SessionError, match="still resolving"):
        supervisor.wait_ready(0.05)


def test_stopping_ends_the_loop_and_everyone_who_waits(world: World) -> None:
    for resolver in world.resolvers.values():
        resolver.delay = 100.0
    supervisor = start(world)
    world.run(0.5)
    caught: list[BaseException] = []

    def wait() -> None:
        try:
            supervisor.wait_ready(30)
        except TunnelError as error:
            caught.append(error)

    waiter = threading.Thread(target=wait)
    waiter.start()
    supervisor.stop()
    waiter.join(5)
    assert world.thread is not None
    world.thread.join(5)
    assert not world.thread.is_alive()
    assert isinstance(caught[0], EngineClosed)
    assert supervisor.status().phase == "stopped"


def test_a_closed_engine_ends_the_loop(world: World) -> None:
    supervisor = start(world)
    world.run(1)
    world.close()
    assert supervisor.status().phase == "stopped"
    supervisor.stop()


def test_every_event_is_handed_on_and_a_failing_listener_does_no_harm(world: World) -> None:
    seen: list[str] = []

    def listener(event: object) -> None:
        seen.append(type(event).__name__)
        raise RuntimeError("a defect in the listener")

    made = start(world)
    made._on_event = listener
    logging.getLogger("ech_workers").setLevel(logging.CRITICAL)
    try:
        assert world.run(1).phase == "up"
    finally:
        logging.getLogger("ech_workers").setLevel(logging.NOTSET)
    assert "SessionUp" in seen
    assert "Fetched" in seen


def test_native_log_lines_reach_pythons_logging(world: World, caplog: pytest.LogCaptureFixture) -> None:
    start(world)
    with caplog.at_level(logging.INFO):
        world.post(0.0, LogLine(level=logging.INFO, target="ech_workers_tunnel::dial", message="hello %s"))
        world.run(0.1)
    assert ("ech_workers.tunnel.dial", logging.INFO, "hello %s") in caplog.record_tuples


def test_an_idle_tunnel_sleeps(world: World) -> None:
    start(world, server_ips=("192.0.2.1",), ech_config=ech_list("mine"))
    turns = 0
    original = world.next_event

    def counting(timeout: float | None) -> Any:
        nonlocal turns
        turns += 1
        return original(timeout)

    world.next_event = counting  # type: ignore[method-assign]
    world.run(10)
    turns = 0
    world.run(600)
    assert turns <= 130
