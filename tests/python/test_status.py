"""What a person reads off the live table and the plain lines."""

from __future__ import annotations

import io
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console

from ech_workers.config import ClientConfig
from ech_workers.errors import ConnectError, TokenError
from ech_workers.overview import EchStatus, ProbeCounts, SessionStatus, SupervisorStatus, UpstreamStatus
from ech_workers.status import facts, feed, lines, metrics, table
from ech_workers.status.carried import carried
from harness.status import CONFIG, SESSION, Made, resolver_status, snapshot, status


def seen(status: SupervisorStatus, shot: Any, *, public: bool = False) -> facts.Facts:
    """The facts of a tunnel in this state, with the rates of a second in which little was sent up and much came down."""
    tunnel: Any = SimpleNamespace(
        config=CONFIG, addresses=[("127.0.0.1", 1080)], status=lambda: status, snapshot=lambda: shot
    )
    found = facts.Observer(tunnel, public=public).look()
    return msgspec.structs.replace(found, rates=facts.Rates(10.0, 2e6))


def drawn(status: SupervisorStatus, shot: Any, notes: tuple[str, ...] = (), width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(table.render(seen(status, shot), notes))
    return cast("io.StringIO", console.file).getvalue()


def test_the_table_of_a_tunnel_that_is_up() -> None:
    text = drawn(status(), snapshot(), ("try curl",))
    for part in (
        "127.0.0.1:1080",
        "hidden.test:443/very-hidden-path  (yamux)",
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


def fitted(width: int, height: int, sessions: int, log: int = 0, **changes: Any) -> list[str]:
    carried = [
        msgspec.structs.replace(
            seen(status(), snapshot()).sessions[0],
            session=number,
            streams=number * 7 % 24,
            bytes_up=1024,
            bytes_down=2048,
        )
        for number in range(1, sessions + 1)
    ]
    shown = msgspec.structs.replace(seen(status(**changes), snapshot()), sessions=tuple(carried))
    console = Console(file=io.StringIO(), width=width, height=height, color_system=None)
    recent = [f"line {number}" for number in range(log)]
    notes = ["try curl", "and more of it"]
    console.print(table.fitted(shown, notes, console, lambda count: recent[-count:] if count > 0 else []))
    return cast("io.StringIO", console.file).getvalue().splitlines()


@pytest.mark.parametrize("size", [(60, 15), (80, 24), (40, 10), (200, 50)])
@pytest.mark.parametrize("sessions", [0, 1, 2, 24, 64])
def test_the_table_fits_every_screen_and_shows_what_matters(size: tuple[int, int], sessions: int) -> None:
    lines = fitted(*size, sessions, log=30)
    assert len(lines) <= size[1]
    assert all(len(line.rstrip()) <= size[0] for line in lines)
    text = "\n".join(lines)
    assert re.search(r"^state +up", text, re.MULTILINE)
    assert "127.0.0.1:1080" in text
    assert "? help" in text


def test_of_many_sessions_the_busiest_are_shown_and_the_others_summed_up() -> None:
    lines = fitted(80, 24, 24)
    shown = [int(line.split()[0]) for line in lines if re.match(r" *\d+ +192\.0\.2\.1", line)]
    busiest = sorted(range(1, 25), key=lambda number: -(number * 7 % 24))
    assert set(shown) == set(busiest[: len(shown)])
    assert len(shown) > 2
    rest = busiest[len(shown) :]
    streams = sum(number * 7 % 24 for number in rest)
    assert any(line.startswith(f"and {len(rest)} more: {streams} streams, up {len(rest)}.0 KiB") for line in lines)


def test_a_large_screen_shows_the_last_log_lines() -> None:
    lines = [line.strip() for line in fitted(100, 40, 1, log=30)]
    assert "try curl" in lines
    assert "line 29" in lines
    assert "line 0" not in lines


def test_a_small_screen_keeps_the_cause() -> None:
    cause = TokenError("the server does not accept this token (or this path)")
    text = " ".join(fitted(60, 15, 0, phase="waiting", cause=cause, cause_age=3.0, next_attempt_in=7.5))
    assert "does not accept this token" in " ".join(text.split())


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
    text = drawn(
        status(
            resolvers=(
                resolver_status(url="https://a.test/q"),
                resolver_status(url="https://b.test/q", state="failing", error="b.test: refused", retry_in=4.0),
                resolver_status(url="https://untried.test/q", state="untried"),
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
    assert facts.Rates.between(before, snapshot(bytes_up=100, bytes_down=300), 2.0) == facts.Rates(50.0, 150.0)
    assert facts.Rates.between(before, snapshot(), 0.0) is None


def test_an_old_look_makes_no_rate_of_now() -> None:
    assert facts.Rates.between(snapshot(bytes_down=0), snapshot(), 3600.0) is None


def test_a_glance_leaves_the_rates_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    shots = iter((snapshot(bytes_down=0), snapshot(bytes_down=500), snapshot(bytes_down=1000)))
    times = iter((100.0, 102.0))
    monkeypatch.setattr("ech_workers.status.facts.time.monotonic", lambda: next(times))
    tunnel: Any = SimpleNamespace(config=CONFIG, addresses=[], status=status, snapshot=lambda: next(shots))
    observer = facts.Observer(tunnel)
    assert observer.look().rates is None
    assert observer.glance().rates is None
    assert observer.look().rates == facts.Rates(0.0, 500.0)


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


def test_a_frame_of_the_feed_is_what_its_schema_says() -> None:
    found = feed.frame(seen(status(resolvers=(resolver_status(),)), snapshot(), public=True), carried(Made()))
    frame = msgspec.json.decode(found, type=feed.Frame)
    assert frame.version == 1
    assert frame.facts.sessions[0].tls_ms == 20.0
    assert frame.facts.sessions[0].rtt_ms == 31.25
    assert frame.facts.rates == facts.Rates(10.0, 2e6)
    assert frame.words.headings[-4:] == ["ECH", "TCP", "TLS", "WebSocket"]
    assert frame.words.sessions[0][-4:] == ["accepted", "10.0 ms", "20.0 ms", "12.4 ms"]
    assert frame.carried[0].target == "b.example:443"
    assert frame.words.carried == [["7", "b.example:443", "connect", "hidden.test:443", "1.0 KiB", "2.0 KiB", "1 min"]]
    said = {row.label: row.text for row in frame.words.rows}
    assert said["traffic"] == "up 10 B/s, down 1.9 MiB/s"
    assert said["uptime"] == "1 h 1 min"
    assert said["resolver"] == "https://resolver.test  12 ms, h2"


def fields_of(kind: Any, prefix: str = "") -> list[str]:
    """The names of all fields, nested ones with a dot."""
    found = []
    for field in msgspec.structs.fields(kind):
        name = f"{prefix}{field.name}"
        found.append(name)
        for part in (field.type, *getattr(field.type, "__args__", ())):
            if isinstance(part, type) and issubclass(part, msgspec.Struct):
                found += fields_of(part, f"{name}.")
    return found


def test_every_field_of_the_feed_and_every_metric_is_documented() -> None:
    text = (Path(__file__).parents[2] / "docs" / "reference" / "status.md").read_text()
    # The server's figures have a section and a test of their own.
    documented = set(
        re.findall(r"^\| `((?!ech_workers_server_)(?:ech_workers_)?[a-z_.]+)` \| (?!`)", text, re.MULTILINE)
    )
    fields = set(fields_of(feed.Frame))
    names = set(re.findall(r"^# TYPE (\S+)", metrics.exposition(seen(status(), snapshot())), re.MULTILINE))
    assert documented == fields | names


def test_a_session_that_only_one_side_knows_of_is_shown_all_the_same() -> None:
    """The supervisor has not yet taken the event that it is up; or the engine has lost it already."""
    early = seen(status(sessions=()), snapshot()).sessions[0]
    assert (early.streams, early.tls_ms) == (3, None)
    late = seen(status(), snapshot(sessions=())).sessions[0]
    assert (late.streams, late.tls_ms) == (None, 20.0)
    for shown in (early, late):
        assert all(cell(shown) for cell in {**lines.SESSION_COLUMNS, **lines.HANDSHAKE_COLUMNS}.values())


def test_nothing_secret_reaches_the_feed_or_the_metrics_even_when_a_message_has_it() -> None:
    secrets = ("very-hidden-path", "distinctive-token", "distinctive-password", "account-4711")
    leaking = " ".join((str(CONFIG.server), CONFIG.resolvers[0].url, *secrets))
    ech = msgspec.structs.replace(cast("EchStatus", status().ech), problem=leaking)
    worst = seen(
        status(
            phase="waiting",
            server=str(CONFIG.server),
            cause=TokenError(leaking, advice=leaking, detail=leaking),
            ech=ech,
            resolvers=(resolver_status(state="failing", error=leaking),),
        ),
        snapshot(last_target_failure=leaking),
        public=True,
    )
    said = feed.frame(worst, []).decode() + metrics.exposition(worst)
    assert "hidden.test:443" in said
    for secret in secrets:
        assert secret not in said


def parsed(text: str) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
    """Sample name to labels to value, as Prometheus reads them."""
    found: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
    for family in text_string_to_metric_families(text):
        assert family.documentation, family.name
        assert family.type in ("counter", "gauge"), family.name
        for sample in family.samples:
            assert (family.type == "counter") == sample.name.endswith("_total"), sample
            assert not re.search("_(ms|kb|mb|milliseconds)", sample.name), sample
            found.setdefault(sample.name, {})[tuple(sorted(sample.labels.items()))] = sample.value
    return found


def test_the_metrics_are_what_prometheus_reads() -> None:
    failing = resolver_status(state="failing", url='https://odd".test\\', ms=None)
    found = parsed(metrics.exposition(seen(status(resolvers=(resolver_status(), failing)), snapshot())))
    assert found["ech_workers_up"] == {(): 1}
    assert found["ech_workers_bytes_total"] == {(("direction", "up"),): 2048, (("direction", "down"),): 5 << 20}
    assert found["ech_workers_round_trip_seconds"] == {(("address", "192.0.2.1:443"),): 0.03125}
    assert found["ech_workers_handshake_seconds"][(("layer", "tls"),)] == 0.02
    assert found["ech_workers_sessions"] == {(("state", "up"),): 1, (("state", "retiring"),): 0}
    assert found["ech_workers_connections_failed_total"] == {(): 1}
    assert found["ech_workers_resolver_up"] == {
        (("resolver", CONFIG.resolvers[0].url),): 1,
        (("resolver", 'https://odd".test\\'),): 0,
    }


def test_the_metrics_of_a_tunnel_without_a_session() -> None:
    cause = TokenError("refused")
    found = parsed(
        metrics.exposition(seen(status(phase="waiting", cause=cause, sessions=(), ech=None), snapshot(sessions=())))
    )
    assert found["ech_workers_up"] == {(): 0}
    assert "ech_workers_round_trip_seconds" not in found
    assert found["ech_workers_dials_failed_total"] == {(): 1}


def test_each_of_several_servers_is_shown_with_its_role_and_no_secret() -> None:
    def upstream(number: int, **changes: Any) -> UpstreamStatus:
        fields: dict[str, Any] = {
            "upstream": number,
            "name": ("home", "spare")[number],
            "server": f"server-{number}.test:443/very-hidden-{number}",
            "mode": "yamux",
            "phase": "up",
            "cause": None,
            "cause_age": None,
            "sessions": (),
            "wanted": 1,
            "dialing": 0,
            "failures": 0,
            "breaker": "closed",
            "next_attempt_in": None,
            "ech": None,
            "addresses": (),
            "role": "in use",
        }
        return UpstreamStatus(**{**fields, **changes})

    tables = [
        {"server": f"server-{number}.test/very-hidden-{number}", "token": f"distinctive-{number}", "priority": number}
        for number in range(2)
    ]
    tunnel: Any = Made()
    tunnel.config = ClientConfig.of({}, tables)
    why = ConnectError("server-1.test:443/very-hidden-1: refused, token distinctive-1", code="tcp-refused").cause
    both = (
        upstream(0, probes=ProbeCounts(passed=3, stopped=1)),
        upstream(1, role="down", phase="waiting", cause=why, cause_age=3.0),
    )
    tunnel.now = status(upstreams=both)
    found = facts.Observer(tunnel, public=True).look()
    assert [(server.name, server.role, server.priority) for server in found.servers] == [
        ("home", "in use", 0),
        ("spare", "down", 1),
    ]
    rows = [(row.text, row.tone, row.more) for row in lines.rows(found) if row.label == "server"]
    assert [row[:2] for row in rows] == [("home", "good"), ("spare", "bad")]
    assert "refused" in rows[1][2]
    shown = f"{found.servers} {rows}"
    assert "very-hidden" not in shown
    assert "distinctive" not in shown
    text = metrics.exposition(found)
    assert 'ech_workers_upstream_in_use{server="home"} 1' in text
    assert 'ech_workers_upstream_up{server="spare"} 0' in text
    counted = {
        name: dict(samples) for name, samples in parsed(text).items() if name.startswith("ech_workers_upstream_")
    }
    home, spare = (("server", "home"),), (("server", "spare"),)
    for name, value in {
        "dials_total": 2,
        "dials_failed_total": 1,
        "ech_retries_total": 0,
        "bytes_up_total": 2048,
        "bytes_down_total": 5 << 20,
        "probes_total": 4,
        "probes_passed_total": 3,
    }.items():
        # The engine has no figures of a server that was not dialled.
        assert counted[f"ech_workers_upstream_{name}"] == {home: value, spare: 0}
