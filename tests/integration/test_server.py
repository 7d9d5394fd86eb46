"""The server as strangers, operators and deployed clients see it."""

import errno
import http.client
import signal
import socket
import ssl
from pathlib import Path

import pytest

from harness import socks
from harness.curl import fetch
from harness.ech import ech_key
from harness.hostile import WS_PING, HostileClient, opening
from harness.processes import Processes
from harness.targets import pattern
from harness.tunnel import COMMAND, PATH, PUBLIC_NAME, SERVER_NAME, TOKEN, Site
from harness.waiting import wait_until

UPGRADE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
}


def request(
    site: Site, port: int, method: str, path: str, headers: dict[str, str] | None = None, name: str = PUBLIC_NAME
) -> tuple[int, dict[str, str], bytes]:
    """One HTTPS request without ECH, as a scanner would make it."""
    context = ssl.create_default_context(cafile=str(site.authority.path))
    with (
        socket.create_connection(("127.0.0.1", port), timeout=10) as plain,
        context.wrap_socket(plain, server_hostname=name) as secured,
    ):
        connection = http.client.HTTPConnection(name)
        connection.sock = secured
        connection.request(method, path, headers=headers or {})
        response = connection.getresponse()
        answer = (response.status, {key.lower(): value for key, value in response.getheaders()}, response.read())
        connection.close()
    return answer


def test_strangers_see_an_ordinary_web_page(site: Site) -> None:
    """Nothing tells a tunnel from a web server: not the path, not a wrong token, not an upgrade without one."""
    port = site.server().port
    pages = [
        request(site, port, "GET", "/"),
        request(site, port, "GET", PATH),
        request(site, port, "GET", PATH, UPGRADE),
        request(site, port, "GET", PATH, {**UPGRADE, "Sec-WebSocket-Protocol": "another-token"}),
        request(site, port, "GET", PATH, {**UPGRADE, "Sec-WebSocket-Protocol": f"{TOKEN}, other"}),
        request(site, port, "GET", "/elsewhere", {**UPGRADE, "Sec-WebSocket-Protocol": TOKEN}),
    ]
    assert {status for status, _, _ in pages} == {200}
    assert len({body for _, _, body in pages}) == 1
    assert b"<html" in pages[0][2].lower()
    names = {frozenset(headers) - {"date"} for _, headers, _ in pages}
    assert len(names) == 1
    assert not any("ech" in header or "websocket" in header for header in next(iter(names)))


def test_right_token_is_answered_101(site: Site) -> None:
    port = site.server().port
    status, headers, _ = request(site, port, "GET", PATH, {**UPGRADE, "Sec-WebSocket-Protocol": TOKEN})
    assert status == 101
    assert headers["sec-websocket-accept"] == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="  # RFC 6455 section 1.3
    assert headers["sec-websocket-protocol"] == TOKEN


def test_a_ping_before_the_first_message_is_answered(site: Site, targets: dict[str, int]) -> None:
    """A client that has nothing to send yet finds out by it that the connection lives; then it is used."""
    with HostileClient(site, site.server().port) as client:
        client.upgrade()
        for payload in (b"", b"still there?", b"x" * 125):
            client.message(payload, WS_PING)
            assert socks.exactly(client.tls, 2 + len(payload)) == bytes([0x8A, len(payload)]) + payload
        client.message(opening(1, f"127.0.0.1:{targets['echo']}", b"hello"))
        client.receive_until(b"hello")


def test_own_decoy_page(site: Site, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text("<!doctype html><html><title>Bakery</title></html>")
    assert request(site, site.server("--decoy", page).port, "GET", "/")[2] == page.read_bytes()


def test_decoy_is_a_web_server(site: Site) -> None:
    """What a scanner tries: methods, Host fields, protocols."""
    port = site.server().port
    for path in ("/", "/healthz"):
        for method in ("POST", "PUT", "DELETE", "OPTIONS"):
            status, headers, _ = request(site, port, method, path)
            assert (status, headers["allow"]) == (405, "GET, HEAD")
    context = ssl.create_default_context(cafile=str(site.authority.path))

    def code(sent: bytes) -> bytes:
        with (
            socket.create_connection(("127.0.0.1", port), timeout=10) as plain,
            context.wrap_socket(plain, server_hostname=PUBLIC_NAME) as secured,
        ):
            secured.sendall(sent)
            return socks.exactly(secured, 12)[9:]

    assert code(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n") == b"200"
    assert code(b"GET / HTTP/1.0\r\n\r\n") == b"200"
    for fields in (b"", b"Host: a\r\nHost: a\r\n", b"Host: a b\r\n", b"Host:\r\n"):
        assert code(b"GET / HTTP/1.1\r\n" + fields + b"\r\n") == b"400", fields


@pytest.mark.parametrize(("offered", "served"), [(["h2"], False), (["h2", "http/1.1"], True), ([], True)])
def test_protocol_that_nobody_speaks_is_refused_with_the_alert(site: Site, offered: list[str], served: bool) -> None:
    port = site.server().port
    context = ssl.create_default_context(cafile=str(site.authority.path))
    if offered:
        context.set_alpn_protocols(offered)
    with socket.create_connection(("127.0.0.1", port), timeout=10) as plain:
        if served:
            with context.wrap_socket(plain, server_hostname=PUBLIC_NAME) as secured:
                assert secured.selected_alpn_protocol() == ("http/1.1" if offered else None)
        else:
            with pytest.raises(ssl.SSLError, match=r"(?i)no.application.protocol"):
                context.wrap_socket(plain, server_hostname=PUBLIC_NAME)


def test_health_is_shown_to_strangers_only_where_that_is_asked_for(site: Site) -> None:
    """`ok` there tells this server from any other web server."""
    answers = [
        request(site, site.server(*options).port, "GET", "/healthz")[2] for options in ((), ("--public-healthz",))
    ]
    assert answers[0].startswith(b"<!doctype html>")
    assert answers[1] == b"ok\n"


@pytest.mark.parametrize("name", [PUBLIC_NAME, SERVER_NAME])
def test_certificate_is_chosen_by_name(site: Site, name: str) -> None:
    assert request(site, site.server().port, "GET", "/", name=name)[0] == 200


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"\x16\x03\x01\x00\x05hello",
        b"\x16\x03\x01\xff\xff" + bytes(70000),
        bytes(100),
        b"\x05\x01\x00",
    ],
    ids=["nothing", "plain-http", "broken-hello", "endless-hello", "zeros", "socks"],
)
def test_garbage_instead_of_tls_is_closed_and_does_no_harm(site: Site, targets: dict[str, int], sent: bytes) -> None:
    server = site.server()
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        try:
            connection.sendall(sent)
            connection.shutdown(socket.SHUT_WR)
            assert len(socks.until_end(connection)) < 100
        except OSError as error:
            # Cut, as it shows in reading, in writing, and in shutting down.
            if error.errno not in (errno.ECONNRESET, errno.EPIPE, errno.ENOTCONN):
                raise
    proxy = site.proxy(server.port)
    assert fetch(proxy, "socks5", f"http://localhost:{targets['http']}/bytes/1000") == b"".join(pattern(1000))


def test_stopping_lets_open_streams_finish(site: Site, targets: dict[str, int]) -> None:
    """SIGTERM in the middle of an answer: the answer comes whole, the port is closed for others, the exit code is 0."""
    server = site.server()
    proxy = site.proxy(server.port)
    with socks.connect(proxy.address, "localhost", targets["http"]) as connection:
        connection.sendall(b"GET /slow/40 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        socks.exactly(connection, 10)
        server.process.signal(signal.SIGTERM)
        assert socks.until_end(connection).endswith(b"." * 40)
    assert server.process.wait(15) == 0
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", server.port), timeout=5)


def test_keys_change_without_a_restart(site: Site, targets: dict[str, int], tmp_path: Path) -> None:
    """A new key in the folder is used; a proxy that runs goes on, and one that starts with it succeeds."""
    server = site.server()
    running = site.proxy(server.port)
    new = ech_key(site.keys_folder, PUBLIC_NAME, 8)
    server.process.wait_line("8.pem", 10)
    site.key.path.unlink()
    wait_until(lambda: "7.pem" not in server.process.lines[-1], "the old key's end")
    site.publish(server.port, new.base64)
    started = site.proxy(server.port)
    for proxy in (running, started):
        assert fetch(proxy, "socks5", f"http://localhost:{targets['http']}/bytes/1000") == b"".join(pattern(1000))


def test_several_tokens_and_a_token_file(site: Site, processes: Processes, tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.write_text("# staff\nfirst-token\n\nsecond-token\n")
    process = processes.start(
        *(COMMAND, "server", "--listen", "127.0.0.1:0", "--cert", site.inner.chain, "--key", site.inner.key),
        *("--cert", site.outer.chain, "--key", site.outer.key, "--ech-keys", site.keys_folder),
        *("--token-file", file, "--path", PATH),
    )
    port = int(process.wait_line(r"listening on \S*?:(\d+)\b").group(1))
    site.publish(port, site.key.base64)
    for token in ("first-token", "second-token"):
        site.proxy(port, token=token)
