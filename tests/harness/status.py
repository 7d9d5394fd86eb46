"""The status of a tunnel that is not there: what the supervisor and the engine would say."""

import contextlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

from ech_workers.config import ClientConfig, ListenAddress
from ech_workers.errors import EngineClosed
from ech_workers.overview import EchStatus, SessionStatus, SupervisorStatus
from ech_workers.resolvers import ResolverStatus
from ech_workers.status.port import StatusPort

CONFIG = ClientConfig.build(
    server="hidden.test/very-hidden-path",
    token="distinctive-token",
    username="somebody",
    password="distinctive-password",
    doh_server="https://resolver.test/account-4711",
    doh_ip="192.0.2.53",
    cache_dir="",
)


SESSION: dict[str, Any] = {
    "session": 1,
    "address": "192.0.2.1:443",
    "ech": "accepted",
    "public_name": "public.test",
    "profile": "firefox-120",
    "hello": "websocket",
    "alpn": "http/1.1",
    "cipher": "TLS_AES_128_GCM_SHA256",
    "group": "X25519",
    "resumed": False,
    "retried": False,
    "tcp_ms": 10.0,
    "tls_ms": 20.0,
    "websocket_ms": 12.4,
}


def status(**changes: Any) -> SupervisorStatus:
    fields: dict[str, Any] = {
        "server": "hidden.test:443/ws",
        "mode": "yamux",
        "phase": "up",
        "cause": None,
        "cause_age": None,
        "sessions": (SessionStatus(**SESSION, features=(), age=5.0, retiring=False),),
        "wanted": 1,
        "dialing": 0,
        "failures": 0,
        "breaker": "closed",
        "next_attempt_in": None,
        "ech": EchStatus(
            source="dns",
            origin="hidden.test",
            public_name="public.test",
            age=12.0,
            expires_in=48.0,
            refreshing=False,
            problem=None,
        ),
        "addresses": ("192.0.2.1",),
        "resolvers": (),
    }
    return SupervisorStatus(**{**fields, **changes})


def snapshot(**changes: Any) -> Any:
    session = SimpleNamespace(
        session=1,
        upstream=0,
        address="192.0.2.1:443",
        state="up",
        streams=3,
        streams_total=120,
        age=200.0,
        rtt_ms=31.25,
        bytes_up=2048,
        bytes_down=5 << 20,
    )
    fields: dict[str, Any] = {
        "uptime": 3700.0,
        "connections": 3,
        "connections_waiting": 0,
        "connections_total": 120,
        "connections_failed": 1,
        "direct_total": 4,
        "blocked_total": 5,
        "targets_failed": 1,
        "last_target_failure": "192.0.2.7:25: connection refused",
        "bytes_up": 2048,
        "bytes_down": 5 << 20,
        "dials_total": 2,
        "dials_failed": 1,
        "ech_retries": 0,
        "upstreams": (
            SimpleNamespace(
                upstream=0, dials_total=2, dials_failed=1, ech_retries=0, bytes_up=2048, bytes_down=5 << 20
            ),
        ),
        "sessions": (session,),
    }
    return SimpleNamespace(**{**fields, **changes})


def resolver_status(**changes: Any) -> ResolverStatus:
    fields: dict[str, Any] = {
        "url": CONFIG.resolvers[0].url,
        "state": "ok",
        "failures": 0,
        "answers": 1,
        "ms": 12.3,
        "http_version": "h2",
        "error": None,
        "age": 1.0,
        "retry_in": None,
    }
    return ResolverStatus(**{**fields, **changes})


CONNECTIONS = (
    SimpleNamespace(
        id=7,
        target="b.example:443",
        protocol="connect",
        way="tunnel",
        upstream=0,
        session=1,
        bytes_up=1024,
        bytes_down=2048,
        age=61.0,
    ),
)


class Made:
    """A tunnel that is what a test says, and counts how often it is looked at."""

    config = CONFIG
    addresses = (("127.0.0.1", 1080),)

    def __init__(self) -> None:
        self.now = status()
        self.counters: dict[str, Any] = {}
        self.looks = 0
        self.closed = False

    def status(self) -> SupervisorStatus:
        if self.closed:
            raise EngineClosed
        self.looks += 1
        return self.now

    def server_names(self) -> dict[int, str]:
        return dict(enumerate(upstream.name for upstream in self.config.upstreams))

    def connections(self) -> Any:
        return CONNECTIONS

    def snapshot(self) -> Any:
        return snapshot(**{"bytes_down": self.looks * 1000, **self.counters})


@contextlib.contextmanager
def served(made: Made, address: ListenAddress = ListenAddress("127.0.0.1", 0)) -> Iterator[StatusPort]:  # noqa: B008
    """Its status port, on loopback unless another address is given."""
    opened = StatusPort([address], made)
    opened.start()
    with contextlib.closing(opened):
        yield opened
