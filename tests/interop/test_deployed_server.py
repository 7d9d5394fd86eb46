"""Our client against the deployed server (gorilla/websocket, hashicorp/yamux, Go's crypto/tls with ECH)."""

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest

from ech_workers import _native
from ech_workers.finding import PROBE
from harness import socks
from harness.answering import Answering
from harness.curl import KINDS, curl, fetch, fetch_sha256
from harness.deployed import DeployedServer
from harness.ech import ech_key
from harness.ports import unused_port
from harness.processes import run
from harness.targets import BANNER, pattern, pattern_sha256
from harness.tunnel import PATH, PUBLIC_NAME, SERVER_NAME, TOKEN, Site
from harness.waiting import wait_until

Start = Callable[..., DeployedServer]
MODES = {"yamux": "--yamux", "simple": "--no-yamux"}


@pytest.mark.parametrize("mode", MODES)
def test_curl_gets_pages_with_ech(site: Site, deployed_server: Start, targets: dict[str, int], mode: str) -> None:
    server = deployed_server()
    proxy = site.proxy(server.port, MODES[mode])
    for kind in KINDS:
        assert fetch(proxy, kind, f"http://localhost:{targets['http']}/bytes/300000") == b"".join(pattern(300000))
    server.process.wait_event("handshake", ech=True, server_name=SERVER_NAME, version="TLS 1.3")
    server.process.wait_event("session", mode=mode)
    assert not [event for event in server.process.events("handshake") if not event["ech"]]


@pytest.mark.parametrize("mode", MODES)
def test_without_ech(site: Site, deployed_server: Start, targets: dict[str, int], mode: str) -> None:
    server = deployed_server(ech=False)
    proxy = site.proxy(server.port, MODES[mode], "--no-ech")
    assert fetch(proxy, "socks5", f"http://localhost:{targets['http']}/bytes/1000") == b"".join(pattern(1000))


@pytest.mark.parametrize("mode", MODES)
def test_large_transfers_both_ways(
    site: Site, deployed_server: Start, targets: dict[str, int], tmp_path: Path, mode: str
) -> None:
    size = 100 << 20
    proxy = site.proxy(deployed_server().port, MODES[mode])
    assert fetch_sha256(proxy, "socks5", f"http://localhost:{targets['http']}/bytes/{size}") == (
        size,
        pattern_sha256(size),
    )
    file = tmp_path / "upload"
    with file.open("wb") as out:
        out.writelines(pattern(size))
    sent = curl(proxy, "http-connect", "--upload-file", file, f"http://localhost:{targets['http']}/sink")
    assert json.loads(sent.stdout) == {"bytes": size, "sha256": pattern_sha256(size)}, sent.stderr


@pytest.mark.parametrize("mode", MODES)
def test_echo_in_both_directions_at_once(
    site: Site, deployed_server: Start, targets: dict[str, int], mode: str
) -> None:
    proxy = site.proxy(deployed_server().port, MODES[mode])
    content = b"".join(pattern(10 << 20))
    with socks.connect(proxy.address, "localhost", targets["echo"]) as connection:
        sender = threading.Thread(target=connection.sendall, args=(content,))
        sender.start()
        assert socks.exactly(connection, len(content)) == content
        sender.join(10)


@pytest.mark.parametrize("mode", MODES)
def test_server_that_speaks_first_is_heard(
    site: Site, deployed_server: Start, targets: dict[str, int], mode: str
) -> None:
    proxy = site.proxy(deployed_server().port, MODES[mode])
    with socks.connect(proxy.address, "localhost", targets["banner"]) as connection:
        assert socks.exactly(connection, len(BANNER)) == BANNER


@pytest.mark.parametrize("mode", MODES)
def test_half_close_is_held_back(site: Site, deployed_server: Start, targets: dict[str, int], mode: str) -> None:
    """The deployed server ends both directions at the first FIN: a program's half-close must not reach it before the answer has."""
    proxy = site.proxy(deployed_server().port, MODES[mode])
    with socks.connect(proxy.address, "localhost", targets["http"]) as connection:
        connection.sendall(b"GET /slow/20 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        connection.shutdown(socket.SHUT_WR)
        assert socks.until_end(connection).endswith(b"\r\n\r\n" + b"." * 20)


@pytest.mark.parametrize("mode", MODES)
def test_forwarded_request_ends_with_its_answer(site: Site, deployed_server: Start, mode: str) -> None:
    """A target that keeps its connection open is left when the program has the whole answer: the FIN is not held back then."""
    proxy = site.proxy(deployed_server().port, MODES[mode])
    with Answering() as target:
        request = f"GET http://127.0.0.1:{target.port}/ HTTP/1.1\r\n\r\n".encode()
        with socket.create_connection(proxy.address, timeout=20) as program:
            program.sendall(request + request)
            assert socks.until_end(program).endswith(b"\r\nConnection: close\r\n\r\nok")
        wait_until(lambda: target.connections[0].fileno() < 0, "the end of the target's connection")
        assert target.bytes.count(b"\r\n\r\n") == 1


@pytest.mark.parametrize("mode", MODES)
def test_refused_target_of_a_forwarded_request_is_a_502(site: Site, deployed_server: Start, mode: str) -> None:
    proxy = site.proxy(deployed_server().port, MODES[mode])
    port = unused_port()
    with socket.create_connection(proxy.address, timeout=20) as program:
        program.sendall(f"GET http://127.0.0.1:{port}/ HTTP/1.1\r\n\r\n".encode())
        assert socks.until_end(program).startswith(b"HTTP/1.1 502 Bad Gateway\r\n")


@pytest.mark.parametrize("mode", MODES)
def test_many_streams_at_a_time(site: Site, deployed_server: Start, targets: dict[str, int], mode: str) -> None:
    proxy = site.proxy(deployed_server().port, MODES[mode])
    count = 100
    connections = [socks.connect(proxy.address, "127.0.0.1", targets["echo"]) for _ in range(count)]
    for number, connection in enumerate(connections):
        connection.sendall(number.to_bytes(2, "big") * 500)
    for number, connection in enumerate(connections):
        with connection:
            assert socks.exactly(connection, 1000) == number.to_bytes(2, "big") * 500


def test_word_close_as_a_binary_message_is_never_sent(
    site: Site, deployed_server: Start, targets: dict[str, int]
) -> None:
    """The deployed server takes a binary message that spells CLOSE for the end of the connection."""
    proxy = site.proxy(deployed_server().port, "--no-yamux")
    with socks.connect(proxy.address, "localhost", targets["echo"]) as connection:
        for _ in range(3):
            connection.sendall(b"CLOSE")
            assert socks.exactly(connection, 5) == b"CLOSE"


@pytest.mark.parametrize("mode", MODES)
def test_target_that_refuses(site: Site, deployed_server: Start, mode: str) -> None:
    proxy = site.proxy(deployed_server().port, MODES[mode])
    port = unused_port()
    try:
        with socks.connect(proxy.address, "127.0.0.1", port) as connection:
            connection.sendall(b"hello")
            assert socks.until_end(connection) == b""
    except (socks.ReplyError, ConnectionResetError):
        pass


@pytest.mark.parametrize("mode", MODES)
def test_it_is_never_probed_and_the_reserved_name_is_looked_up_as_any_other(
    site: Site, deployed_server: Start, mode: str
) -> None:
    """It does not announce that it sends anything back; `check` probes every server that does."""
    server = deployed_server()
    proxy = site.proxy(server.port, MODES[mode])
    try:
        with socks.connect(proxy.address, "echo.invalid", 7) as connection:
            connection.sendall(b"hello")
            assert socks.until_end(connection) == b""
    except (socks.ReplyError, ConnectionResetError):
        pass
    command, _, _, *options = site.proxy_arguments(server.port, MODES[mode])
    place = options.index("--listen")
    del options[place : place + 2]
    done = run(command, "check", *options, "--json", env=site.environment, timeout=90)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert "websocket" in [row["layer"] for row in rows if row["ok"]]
    assert PROBE not in [row["subject"] for row in rows]


@pytest.mark.parametrize("mode", ["yamux", "simple"])
def test_the_engine_itself_sends_no_probe_to_it(
    site: Site, deployed_server: Start, mode: Literal["yamux", "simple"]
) -> None:
    """Whoever asks it to."""
    server = deployed_server()
    plan = _native.DialPlan(
        server_name=SERVER_NAME,
        port=server.port,
        path=PATH,
        token=TOKEN,
        addresses=["127.0.0.1"],
        ech=site.key.config_list,
        mode=mode,
    )
    authority = site.authority.path.read_bytes()
    engine = _native.Engine(_native.EngineConfiguration(ca_pem=[authority], system_roots=False))

    def event_of(kind: type[Any]) -> Any:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            event = engine.next_event(1.0)
            assert not isinstance(event, _native.DialFailed), event.failure.message
            if isinstance(event, kind):
                return event
        raise AssertionError(f"no {kind.__name__}")

    try:
        engine.dial(plan)
        session = event_of(_native.SessionUp).session
        asked = engine.echo(session, 0) if mode == "yamux" else engine.echo_alone(plan)
        echoed = event_of(_native.Echoed)
        assert (echoed.echo, echoed.outcome) == (asked, "failed")
    finally:
        engine.close()
    server.process.stop()
    assert server.process.events("stream") == []


@pytest.mark.parametrize("mode", MODES)
def test_wrong_token_gets_the_decoy_and_a_clear_word(site: Site, deployed_server: Start, mode: str) -> None:
    server = deployed_server()
    proxy = site.proxy(server.port, MODES[mode], token="another-token", wait=False)
    proxy.process.wait_line(r"does not accept this token")
    server.process.wait_event("decoy", upgrade=True)
    assert server.process.events("session") == []


@pytest.mark.parametrize("echo", ["none", "empty"])
def test_token_in_the_path(site: Site, deployed_server: Start, targets: dict[str, int], echo: str) -> None:
    """Some deployments take the token from the path, and answer with an empty protocol or none."""
    server = deployed_server("-token-in", "path", "-echo", echo)
    arguments = [str(word) for word in site.proxy_arguments(server.port, path=f"/{TOKEN}")]
    at = arguments.index("--token")
    del arguments[at : at + 2]
    process = site.processes.start(*arguments, env=site.environment)
    port = int(process.wait_line(r"listening on \S*?:(\d+)\b").group(1))
    process.wait_line("session up")
    with socks.connect(("127.0.0.1", port), "localhost", targets["echo"]) as connection:
        connection.sendall(b"hello")
        assert socks.exactly(connection, 5) == b"hello"


@pytest.mark.parametrize("mode", MODES)
def test_server_that_chooses_h2_is_met_with_the_websocket_hello_and_remembered(
    site: Site, deployed_server: Start, targets: dict[str, int], mode: str
) -> None:
    """net/http with HTTP/2 on, as every CDN: the first contact ends in h2, the second hello offers http/1.1 alone; the next start goes straight there."""
    server = deployed_server("-alpn", "h2,http/1.1")
    proxy = site.proxy(server.port, MODES[mode])
    assert fetch(proxy, "socks5", f"http://localhost:{targets['http']}/bytes/1000") == b"".join(pattern(1000))
    # The server may speak of the connection that the client left after it spoke of the next.
    server.process.wait_event("handshake", alpn="h2")
    chosen = sorted(event["alpn"] for event in server.process.events("handshake"))
    assert chosen[0] == "h2"
    assert set(chosen[1:]) == {"http/1.1"}
    proxy.process.stop()
    before = len(server.process.events("handshake"))
    again = site.proxy(server.port, MODES[mode])
    assert fetch(again, "socks5", f"http://localhost:{targets['http']}/bytes/1000") == b"".join(pattern(1000))
    assert {event["alpn"] for event in server.process.events("handshake")[before:]} == {"http/1.1"}


def test_server_that_chooses_no_protocol(site: Site, deployed_server: Start, targets: dict[str, int]) -> None:
    server = deployed_server("-alpn", "")
    proxy = site.proxy(server.port)
    assert fetch(proxy, "socks5", f"http://localhost:{targets['http']}/bytes/1000") == b"".join(pattern(1000))
    server.process.wait_event("handshake", alpn="", ech=True)


def test_alpn_option_skips_the_first_contact(site: Site, deployed_server: Start) -> None:
    server = deployed_server("-alpn", "h2,http/1.1")
    site.proxy(server.port, "--alpn", "http/1.1")
    assert {event["alpn"] for event in server.process.events("handshake")} == {"http/1.1"}


def test_stale_key_is_mended_and_remembered(
    site: Site, deployed_server: Start, targets: dict[str, int], tmp_path: Path
) -> None:
    server = deployed_server(publish=False)
    site.publish(server.port, ech_key(tmp_path / "stale", PUBLIC_NAME, 99).base64)
    proxy = site.proxy(server.port)
    assert fetch(proxy, "socks5", f"http://localhost:{targets['http']}/bytes/1000") == b"".join(pattern(1000))
    server.process.wait_event("handshake", ech=False, server_name=PUBLIC_NAME)
    server.process.wait_event("handshake", ech=True, server_name=SERVER_NAME)
    assert len(server.process.events("handshake")) == 2
    proxy.process.stop()
    again = site.proxy(server.port)
    assert fetch(again, "socks5", f"http://localhost:{targets['http']}/bytes/1000") == b"".join(pattern(1000))
    assert all(event["ech"] for event in server.process.events("handshake")[2:])


def test_session_that_is_cut_is_replaced(site: Site, deployed_server: Start, targets: dict[str, int]) -> None:
    """The server dies in the middle of a download: that download ends, and later ones work once a server is back."""
    server = deployed_server("-close-after", str(1 << 20))
    proxy = site.proxy(server.port)
    with socks.connect(proxy.address, "localhost", targets["http"]) as connection:
        connection.sendall(b"GET /bytes/50000000 HTTP/1.1\r\nHost: localhost\r\n\r\n")
        connection.settimeout(20)
        with contextlib.suppress(ConnectionResetError):
            assert len(socks.until_end(connection)) < 50000000
    # It cuts the connection first, and then ends.
    server.process.wait(20)
    replacement = deployed_server("-listen", f"127.0.0.1:{server.port}")
    url = f"http://localhost:{targets['http']}/bytes/1000"
    # The first server may have taken another session before it ended.
    wait_until(lambda: curl(proxy, "socks5", "--fail", url).returncode == 0, "the server is used again", 60)
    assert fetch(proxy, "socks5", url) == b"".join(pattern(1000))
    assert replacement.process.running


def test_large_windows_are_not_overrun(site: Site, deployed_server: Start, targets: dict[str, int]) -> None:
    """A program that does not read holds back its own stream alone, within the windows on both sides."""
    proxy = site.proxy(deployed_server().port)
    with socks.connect(proxy.address, "localhost", targets["http"]) as stuck:
        stuck.sendall(b"GET /bytes/1000000000 HTTP/1.1\r\nHost: localhost\r\n\r\n")
        socks.exactly(stuck, 100)
        for _ in range(3):
            assert fetch(proxy, "socks5", f"http://localhost:{targets['http']}/bytes/5000000") == b"".join(
                pattern(5000000)
            )
        assert proxy.process.resident_kib() < 150_000


def test_request_waits_for_the_upgrade(site: Site, deployed_server: Start, targets: dict[str, int]) -> None:
    """The deployed server drops a client that sends anything before it has read the 101."""
    server = deployed_server()
    for mode in MODES.values():
        proxy = site.proxy(server.port, mode)
        assert fetch(proxy, "socks5", f"http://localhost:{targets['http']}/bytes/10") == pattern(10)[-1]
    wait_until(lambda: len(server.process.events("session")) >= 2, "both sessions")
    assert server.process.events("upgrade-failed") == []
