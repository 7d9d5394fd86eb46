"""What a person reads off the live table and the plain lines."""

from __future__ import annotations

import io
from types import SimpleNamespace
from typing import Any, cast

import pytest
from rich.console import Console

from ech_workers.errors import TokenError
from ech_workers.resolvers import ResolverStatus
from ech_workers.status import lines, table
from ech_workers.supervisor import EchStatus, SessionStatus, SupervisorStatus

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
        "connections": 3,
        "connections_waiting": 0,
        "connections_total": 120,
        "connections_failed": 1,
        "targets_failed": 1,
        "last_target_failure": "192.0.2.7:25: connection refused",
        "bytes_up": 2048,
        "bytes_down": 5 << 20,
        "sessions": (session,),
    }
    return SimpleNamespace(**{**fields, **changes})


def drawn(status: SupervisorStatus, shot: Any, notes: tuple[str, ...] = (), width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(table.render(status, shot, table.Rates(10.0, 2e6), [("127.0.0.1", 1080)], notes))
    return cast("io.StringIO", console.file).getvalue()


def test_the_table_of_a_tunnel_that_is_up() -> None:
    text = drawn(status(), snapshot(), ("try curl",))
    for part in (
        "127.0.0.1:1080",
        "hidden.test:443/ws  (yamux)",
        "accepted, the network sees public.test, from the HTTPS record of hidden.test, 12 s old",
        "up 10 B/s, down 1.9 MiB/s",
        "connections: 3 open, 0 waiting, 120 in all, 1 failed",
        "192.0.2.7:25: connection refused (failed targets: 1)",
        "31.2 ms",
        "5.0 MiB",
        "3 min",
        "firefox-120, TLS_AES_128_GCM_SHA256, X25519",
        "try curl",
    ):
        assert part in text, text


def test_the_table_says_why_there_is_no_session() -> None:
    cause = TokenError("the server does not accept this token (or this path)")
    text = drawn(
        status(phase="waiting", cause=cause, cause_age=3.0, sessions=(), next_attempt_in=7.5), snapshot(sessions=())
    )
    assert "waiting" in text
    assert "does not accept this token" in text
    assert "next attempt in 7 s" in text
    assert "ping" not in text


def test_the_table_says_when_the_name_is_in_clear() -> None:
    session = SessionStatus(**{**SESSION, "ech": "off", "public_name": None}, features=(), age=5.0, retiring=False)
    assert "the network sees the server's name" in drawn(status(ech=None, sessions=(session,)), snapshot())


def test_the_table_shows_resolvers_that_were_asked() -> None:
    def resolver(url: str, **changes: Any) -> ResolverStatus:
        fields: dict[str, Any] = {
            "url": url,
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

    text = drawn(
        status(
            resolvers=(
                resolver("https://a.test/q"),
                resolver("https://b.test/q", state="failing", error="b.test: refused", retry_in=4.0),
                resolver("https://untried.test/q", state="untried"),
            )
        ),
        snapshot(),
    )
    assert "https://a.test/q  12 ms, h2" in text
    assert "b.test: refused (asked again in 4 s)" in text
    assert "untried.test" not in text


@pytest.mark.parametrize("width", [20, 40, 80])
def test_the_table_is_drawn_on_narrow_terminals(width: int) -> None:
    assert max(len(line) for line in drawn(status(), snapshot(), width=width).splitlines()) <= width


def test_what_a_peer_wrote_is_text_and_not_markup() -> None:
    cause = TokenError("[bold]they said[/bold] [link=x]")
    assert "[bold]they said[/bold] [link=x]" in drawn(status(cause=cause), snapshot())


def test_rates_are_differences() -> None:
    before = snapshot(bytes_up=0, bytes_down=0)
    assert table.Rates.between(before, snapshot(bytes_up=100, bytes_down=300), 2.0) == (50.0, 150.0)
    assert table.Rates.between(before, snapshot(), 0.0) == (0.0, 0.0)


def test_the_plain_line_of_a_session() -> None:
    up: Any = SimpleNamespace(**SESSION)
    assert lines.session_up(up) == (
        "session up: 1 to 192.0.2.1:443, ECH accepted (public name public.test), TLS_AES_128_GCM_SHA256 X25519,"
        " firefox-120, 42 ms"
    )


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1536, "1.5 KiB"),
        (12 << 20, "12.0 MiB"),
        (3 << 30, "3.0 GiB"),
        (5 << 40, "5.0 TiB"),
    ],
)
def test_sizes(count: int, text: str) -> None:
    assert lines.size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59, "59 s"), (61, "1 min"), (7500, "2 h 5 min"), (190000, "2 d 4 h")]
)
def test_durations(seconds: float, text: str) -> None:
    assert lines.duration(seconds) == text
