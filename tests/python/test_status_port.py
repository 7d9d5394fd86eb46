"""The status port: what it answers, to whom, and how it ends."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from ech_workers.config import ListenAddress
from ech_workers.errors import ListenError, TokenError
from ech_workers.status import connection as one_connection
from ech_workers.status import feed, port
from ech_workers.status.page import page, policy
from ech_workers.status.port import StatusPort
from harness.status import Made, served, status
from harness.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def made() -> Made:
    return Made()


@pytest.fixture
def serving(made: Made) -> Iterator[StatusPort]:
    with served(made) as opened:
        yield opened


def ask(
    serving: StatusPort,
    path: str,
    *,
    method: str = "GET",
    headers: dict[str, str] | None = None,
    body: bytes | None = None,
) -> tuple[int, str, http.client.HTTPMessage]:
    client = http.client.HTTPConnection(*serving.addresses[0], timeout=10)
    with contextlib.closing(client):
        client.request(method, path, body, headers or {})
        answer = client.getresponse()
        return answer.status, answer.read().decode(), answer.headers


def watch(serving: StatusPort) -> ClientConnection:
    return connect(f"ws://127.0.0.1:{serving.addresses[0][1]}/feed", proxy=None)


def test_the_page_comes_whole_and_lets_nothing_else_in(serving: StatusPort) -> None:
    code, body, headers = ask(serving, "/")
    assert code == 200
    assert body.encode() == page()
    assert headers["Content-Type"] == "text/html; charset=utf-8"
    assert headers["Content-Security-Policy"] == policy(page())
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Cache-Control"] == "no-store"


def test_the_policy_names_the_page_s_own_style_and_script_by_their_hashes() -> None:
    found = dict(part.split(" ", 1) for part in policy(page()).split("; "))
    assert found["default-src"] == "'none'"
    assert found["connect-src"] == "'self'"
    for kind in ("style-src", "script-src"):
        assert found[kind].startswith("'sha256-")
        assert "unsafe" not in found[kind]


def test_the_page_asks_nobody_else_and_writes_no_markup() -> None:
    text = page().decode()
    for word in (
        "http:",
        "https:",
        "src=",
        "@import",
        "url(",
        "innerHTML",
        "insertAdjacent",
        "outerHTML",
        "style=",
        "onclick",
    ):
        assert word not in text


def test_healthz_says_whether_traffic_would_be_carried_and_why_not(serving: StatusPort, made: Made) -> None:
    assert ask(serving, "/healthz")[:2] == (200, "ok\n")
    made.now = status(phase="degraded")
    assert ask(serving, "/healthz")[0] == 200
    made.now = status(phase="waiting", cause=TokenError("the server does not accept this token"), sessions=())
    code, body, _ = ask(serving, "/healthz")
    assert code == 503
    assert body == "token: the server does not accept this token; check --token and the path in --server\n"
    made.now = status(phase="resolving", sessions=())
    assert ask(serving, "/healthz")[:2] == (503, "resolving\n")
    made.closed = True
    assert ask(serving, "/healthz")[0] == 503


def test_metrics_say_their_format(serving: StatusPort) -> None:
    code, body, headers = ask(serving, "/metrics?x=1")
    assert code == 200
    assert headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert "\nech_workers_up 1\n" in body


@pytest.mark.parametrize(
    ("method", "path", "body", "code"),
    [
        ("GET", "/favicon.ico", None, 404),
        ("GET", "/feed/", None, 404),
        ("GET", "http://127.0.0.1/metrics", None, 404),
        ("POST", "/", None, 405),
        ("POST", "/", b"a body", 405),
        ("DELETE", "/metrics", None, 405),
        ("HEAD", "/nothing", None, 404),
        ("GET", "/metrics", b"a body", 400),
        ("GET", "/feed", None, 426),
    ],
)
def test_anything_else_is_refused(serving: StatusPort, method: str, path: str, body: bytes | None, code: int) -> None:
    found, _, headers = ask(serving, path, method=method, body=body)
    assert found == code
    if code == 405:
        assert headers["Allow"] == "GET, HEAD"


@pytest.mark.parametrize("path", ["/", "/metrics", "/healthz"])
def test_head_is_answered_as_get_without_the_body(serving: StatusPort, path: str) -> None:
    code, body, headers = ask(serving, path)
    found, nothing, others = ask(serving, path, method="HEAD")
    assert (found, nothing) == (code, "")
    assert others["Content-Type"] == headers["Content-Type"]
    if path == "/":
        assert int(others["Content-Length"]) == len(body.encode())


def test_a_method_that_comes_in_pieces_is_read(serving: StatusPort) -> None:
    with socket.create_connection(serving.addresses[0], 10) as slow:
        slow.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for piece in (b"H", b"EA", b"D", b" /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"):
            slow.sendall(piece)
            time.sleep(0.02)
        answer = b""
        while more := slow.recv(4096):
            answer += more
    assert answer.startswith(b"HTTP/1.1 200")
    assert answer.endswith(b"\r\n\r\n")


def test_a_name_that_was_given_is_answered(made: Made) -> None:
    made.config = msgspec.structs.replace(made.config, status_hosts=("proxy", "a.b-c_d.test"))
    with served(made) as serving:
        for host, code in (("proxy:9090", 200), ("PROXY", 200), ("a.b-c_d.test.", 200), ("other", 403)):
            assert ask(serving, "/healthz", headers={"Host": host})[0] == code, host


def test_the_network_needs_the_token_and_this_machine_does_not(made: Made) -> None:
    address = _own_address()
    made.config = msgspec.structs.replace(made.config, status_token="s3cret")
    with served(made, ListenAddress("0.0.0.0", 0)) as serving:
        port = serving.addresses[0][1]

        def code(host: str, path: str = "/metrics", **headers: str) -> int:
            client = http.client.HTTPConnection(host, port, timeout=10)
            with contextlib.closing(client):
                client.request("GET", path, headers=headers)
                return client.getresponse().status

        assert code("127.0.0.1") == 200
        assert code(address) == 401
        assert code(address, Authorization="Bearer s3cret") == 200
        assert code(address, "/metrics?token=s3cret") == 200
        assert code(address, "/?token=wrong") == 401
        assert code(address, Authorization="Basic s3cret") == 401
        with connect(f"ws://{address}:{port}/feed?token=s3cret", proxy=None) as feed_of:
            assert json.loads(feed_of.recv(timeout=5))["version"] == feed.VERSION


def _own_address() -> str:
    """An address of this machine that is not loopback; no packet is sent for it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            pytest.skip("this machine has no address but loopback")
        return str(probe.getsockname()[0])


@pytest.mark.parametrize(
    ("host", "code"),
    [
        ("127.0.0.1", 200),
        ("127.0.0.1:9090", 200),
        ("localhost:9090", 200),
        ("LocalHost", 200),
        ("[::1]:9090", 200),
        ("192.0.2.1", 200),
        ("rebound.test:9090", 403),
        ("localhost.rebound.test", 403),
        ("127.0.0.1.rebound.test", 403),
        ("127.0.0.1@rebound.test", 403),
        ("2130706433", 403),
        ("0x7f.1", 403),
        ("127.1", 403),
        ("[127.0.0.1]", 403),
        ("::1", 403),
        ("", 403),
    ],
)
def test_a_name_that_a_stranger_s_dns_could_lead_here_is_refused(serving: StatusPort, host: str, code: int) -> None:
    for path in ("/", "/metrics", "/healthz"):
        assert ask(serving, path, headers={"Host": host})[0] == code
    assert upgrade(serving, Host=host) == (101 if code == 200 else 403)


def upgrade(serving: StatusPort, **headers: str) -> int:
    """The status that answers a WebSocket's opening handshake with these fields."""
    client = http.client.HTTPConnection(*serving.addresses[0], timeout=10)
    asked = {
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Version": "13",
        **headers,
    }
    with contextlib.closing(client):
        client.request("GET", "/feed", headers=asked)
        return client.getresponse().status


@pytest.mark.parametrize(
    ("origin", "code"),
    [
        ("http://127.0.0.1:{}", 101),
        ("HTTP://127.0.0.1:{}", 101),
        ("http://127.0.0.1", 403),
        ("http://localhost:{}", 403),
        ("https://127.0.0.1:{}", 403),
        ("http://127.0.0.1:{}.evil.test", 403),
        ("http://evil.test", 403),
        ("null", 403),
        ("", 403),
    ],
)
def test_a_page_of_another_site_cannot_open_the_feed(serving: StatusPort, origin: str, code: int) -> None:
    assert upgrade(serving, Origin=origin.format(serving.addresses[0][1])) == code


def test_a_page_of_another_site_gets_no_figures_by_fetch_either(serving: StatusPort) -> None:
    for path in ("/", "/metrics", "/healthz"):
        code, body, headers = ask(serving, path, headers={"Origin": "http://evil.test"})
        assert code == 403
        assert "ech_workers" not in body
        assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert headers["Access-Control-Allow-Origin"] is None


def test_a_request_with_two_hosts_is_refused(serving: StatusPort) -> None:
    with socket.create_connection(serving.addresses[0], timeout=10) as connection:
        connection.sendall(b"GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\nHost: rebound.test\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 403 ")


def test_a_request_without_a_host_is_refused(serving: StatusPort) -> None:
    with socket.create_connection(serving.addresses[0], timeout=10) as connection:
        connection.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 403 ")


def test_noise_is_answered_or_closed_and_nothing_breaks(serving: StatusPort, caplog: pytest.LogCaptureFixture) -> None:
    for noise in (
        b"\x16\x03\x01\x02\x00",
        b"\r\n\r\n",
        b"GET /\r\n\r\n",
        b"A" * 20000,
        b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 200,
    ):
        with socket.create_connection(serving.addresses[0], timeout=10) as connection, contextlib.suppress(OSError):
            connection.sendall(noise)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(65536):
                pass
    assert ask(serving, "/healthz")[0] == 200
    assert caplog.records == []


@pytest.mark.alone
def test_the_first_frame_comes_at_once_and_the_next_each_second(serving: StatusPort) -> None:
    started = time.monotonic()
    with watch(serving) as watching:
        first = json.loads(watching.recv(timeout=5))
        assert time.monotonic() - started < 0.9
        assert first["version"] == 1
        assert first["facts"]["rates"] is None
        second = json.loads(watching.recv(timeout=5))
        assert 0.9 < second["facts"]["at"] - first["facts"]["at"] < 1.5
        assert second["facts"]["rates"]["down"] > 0


@pytest.mark.alone
def test_the_tunnel_is_looked_at_once_a_second_however_many_watch_and_never_when_nobody_does(
    serving: StatusPort, made: Made
) -> None:
    time.sleep(1.2)
    assert made.looks == 0
    with contextlib.ExitStack() as stack:
        watching = [stack.enter_context(watch(serving)) for _ in range(8)]
        frames = [[one.recv(timeout=5) for _ in range(3)] for one in watching]
        assert all(each == frames[0] for each in frames)
        assert made.looks <= 4
    wait_until(lambda: not serving._is_watched(), "the watchers are gone")
    before = made.looks
    time.sleep(1.5)
    assert made.looks == before


def test_only_so_many_may_watch(serving: StatusPort) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(port.WATCHERS):
            stack.enter_context(watch(serving)).recv(timeout=5)
        assert upgrade(serving) == 503
        assert ask(serving, "/healthz")[0] == 200
    wait_until(lambda: not serving._is_watched(), "the watchers are gone")
    assert upgrade(serving) == 101


def test_only_so_many_may_be_connected_and_the_port_recovers(
    serving: StatusPort, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(port, "CONNECTIONS", 5)
    with contextlib.ExitStack() as stack:
        for _ in range(5):
            stack.enter_context(socket.create_connection(serving.addresses[0], timeout=10))
        with socket.create_connection(serving.addresses[0], timeout=10) as refused:
            assert refused.recv(1) == b""
    wait_until(lambda: not serving._connections, "they are forgotten")
    assert ask(serving, "/healthz")[0] == 200


def test_a_connection_that_asks_nothing_is_closed(serving: StatusPort, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(one_connection, "REQUEST_TIMEOUT", 0.3)
    with socket.create_connection(serving.addresses[0], timeout=5) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\n")
        started = time.monotonic()
        assert connection.recv(100) == b""
        assert time.monotonic() - started < 3


def test_an_answer_that_nobody_takes_is_given_up(serving: StatusPort, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(one_connection, "LINGER", 0.3)
    with socket.create_connection(serving.addresses[0], timeout=5) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        wait_until(lambda: serving._connections, "it is served")
        wait_until(lambda: not serving._connections, "it is closed though we keep our side open")


def test_a_slow_reader_misses_frames_and_is_let_go(serving: StatusPort, monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits for it stays small, and who reads gets every frame."""
    monkeypatch.setattr(one_connection, "STALL_TIMEOUT", 0.5)
    monkeypatch.setattr(feed, "INTERVAL", 0.02)
    monkeypatch.setattr(feed, "frame", lambda facts, carried: b"x" * 200_000)
    stuck = socket.socket()
    stuck.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    with stuck, watch(serving) as watching:
        stuck.connect(serving.addresses[0])
        stuck.sendall(
            b"GET /feed HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        wait_until(lambda: len(serving._connections) == 2, "both are there")
        held = []
        deadline = time.monotonic() + 20
        while len(serving._connections) == 2 and time.monotonic() < deadline:
            assert len(watching.recv(timeout=5)) == 200_000
            held += [len(connection._out) for connection in list(serving._connections)]
        assert len(serving._connections) == 1
        # One frame, and the answer to the upgrade where that has not gone out yet.
        assert 0 < max(held) <= 201_000
        assert len(watching.recv(timeout=5)) == 200_000


def test_a_watcher_that_pings_and_never_reads_is_let_go(serving: StatusPort, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(one_connection, "BACKLOG", 1 << 12)
    stuck = socket.socket()
    stuck.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    with stuck:
        stuck.connect(serving.addresses[0])
        stuck.settimeout(20)
        stuck.sendall(
            b"GET /feed HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        pings = (b"\x89\xfd\0\0\0\0" + b"p" * 125) * 100
        with pytest.raises(OSError):
            stuck.sendall(pings * 1000)
    wait_until(lambda: not serving._connections, "it is let go")


def test_whoever_speaks_on_the_feed_is_let_go(serving: StatusPort) -> None:
    with watch(serving) as watching:
        watching.recv(timeout=5)
        watching.send("hello?")
        with pytest.raises(ConnectionClosed):
            list(watching)
        assert watching.close_code == 1008


def test_a_defect_in_one_answer_ends_that_connection_alone(
    serving: StatusPort, made: Made, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken() -> Any:
        raise ZeroDivisionError

    with monkeypatch.context() as patched:
        patched.setattr(made, "snapshot", broken)
        with pytest.raises(http.client.RemoteDisconnected):
            ask(serving, "/metrics")
    assert "ZeroDivisionError" in caplog.text
    assert ask(serving, "/healthz")[0] == 200


def test_a_defect_in_the_look_ends_the_watchers_and_not_the_port(
    serving: StatusPort, made: Made, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken() -> Any:
        raise ZeroDivisionError

    with watch(serving) as watching, monkeypatch.context() as patched:
        watching.recv(timeout=5)
        patched.setattr(made, "snapshot", broken)
        with pytest.raises(ConnectionClosed):
            list(watching)
    assert caplog.text.count("cannot say how the tunnel is") == 1
    with watch(serving) as watching:
        watching.recv(timeout=5)


@pytest.mark.alone
def test_it_ends_at_once_with_watchers_and_with_connections_that_ask_nothing(made: Made) -> None:
    threads = threading.active_count()
    serving = StatusPort([ListenAddress("127.0.0.1", 0), ListenAddress("::1", 0)], made)
    serving.start()
    with socket.create_connection(serving.addresses[0]) as silent, watch(serving) as watching:
        watching.recv(timeout=5)
        started = time.monotonic()
        serving.close()
        assert time.monotonic() - started < 0.5
        with pytest.raises(ConnectionClosed) as caught:
            watching.recv(timeout=5)
        assert caught.value.rcvd is not None
        assert caught.value.rcvd.code == 1001
        assert silent.recv(1) == b""
        serving.close()
        for address in serving.addresses:
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(address)
    wait_until(lambda: threading.active_count() == threads, "no thread is left")


def test_a_watcher_of_a_closed_tunnel_is_told_so(serving: StatusPort, made: Made) -> None:
    made.closed = True
    assert upgrade(serving) == 503


def test_a_port_in_use_is_a_listen_error_that_names_the_option(made: Made) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = ListenAddress("127.0.0.1", taken.getsockname()[1])
        with pytest.raises(ListenError, match=r"127\.0\.0\.1:\d+: the port is in use.*--status-listen") as caught:
            StatusPort([ListenAddress("127.0.0.1", 0), address], made)
        assert caught.value.code == "listen-in-use"


def test_it_listens_on_both_families_and_by_name(made: Made) -> None:
    serving = StatusPort([ListenAddress("localhost", 0), ListenAddress("::1", 0)], made)
    serving.start()
    with contextlib.closing(serving):
        assert [address[0] for address in serving.addresses] == ["127.0.0.1", "::1"]
        for address in serving.addresses:
            client = http.client.HTTPConnection(*address, timeout=10)
            client.request("GET", "/healthz")
            assert client.getresponse().read() == b"ok\n"
            client.close()


def test_an_ended_supply_of_descriptors_is_waited_out(serving: StatusPort, monkeypatch: pytest.MonkeyPatch) -> None:
    """accept() fails, the port stays readable: the loop must not go round, and it must go on later."""
    monkeypatch.setattr(port, "_RESPITE", 0.3)
    tried = []
    accept = socket.socket.accept

    def fails(self: socket.socket) -> Any:
        tried.append(time.monotonic())
        if len(tried) < 3:
            raise OSError(24, "Too many open files")
        return accept(self)

    monkeypatch.setattr(socket.socket, "accept", fails)
    assert ask(serving, "/healthz")[0] == 200
    assert len(tried) == 3
    assert tried[1] - tried[0] > 0.25
