"""What users see when something is wrong: each cause has its own line, the port stays open, local programs fail soon."""

import contextlib
import re
import socket
import time
from pathlib import Path

import pytest

from harness import socks
from harness.answering import Answering
from harness.authority import Authority
from harness.curl import curl, fetch
from harness.ech import ech_key
from harness.ports import unused_port
from harness.processes import Processes
from harness.tap import Tap
from harness.targets import pattern
from harness.tunnel import COMMAND, PATH, PUBLIC_NAME, RESOLVER_NAME, SERVER_NAME, TOKEN, ProxyProgram, Site

# Sooner than curl gives up.
REPLY_LIMIT = 15.0


def assert_fails_soon_and_says_why_once(proxy: ProxyProgram, pattern: str, targets: dict[str, int]) -> None:
    """Local programs get a failing reply, by each protocol; the log names the cause once, not once a connection."""
    proxy.process.wait_line(pattern, 15)
    url = f"http://localhost:{targets['http']}/bytes/10"
    for kind in ("socks5", "http-connect", "http"):
        started = time.monotonic()
        failed = curl(
            proxy, kind, "--write-out", "%{http_code} %{http_connect}", "--output", "/dev/null", url, timeout=20
        )
        assert time.monotonic() - started < REPLY_LIMIT, failed
        if kind == "socks5":
            assert failed.returncode == 97, failed  # CURLE_PROXY: a SOCKS5 code other than 0
        elif kind == "http-connect":
            assert failed.stdout.split()[1] in ("502", "503"), failed
        else:
            assert failed.stdout.split()[0] in ("502", "503"), failed
    assert_tells_only_the_cause(proxy, targets["http"])
    assert proxy.process.running
    said = [line for line in proxy.process.lines if re.search(pattern, line)]
    assert len(said) == 1, said


def told(proxy: ProxyProgram, *requests: bytes) -> bytes:
    """All that programs get that send these, a connection each."""
    heard = bytearray()
    for request in requests:
        with socket.create_connection(proxy.address, timeout=20) as program, contextlib.suppress(ConnectionResetError):
            program.sendall(request)
            heard += socks.until_end(program)
    return bytes(heard)


def assert_tells_only_the_cause(proxy: ProxyProgram, target: int) -> None:
    """Whoever can reach the local port learns neither the server's name and address nor the token: not in any reply."""
    authority = f"localhost:{target}".encode()
    heard = told(
        proxy,
        b"\x05\x01\x00" + b"\x05\x01\x00\x03\x09localhost" + target.to_bytes(2, "big"),
        b"\x04\x01\x00\x50\x7f\x00\x00\x01\x00",
        b"CONNECT %s HTTP/1.1\r\n\r\n" % authority,
        b"GET http://%s/ HTTP/1.1\r\n\r\n" % authority,
        b"HEAD http://%s/ HTTP/1.1\r\n\r\n" % authority,
        b"GET http://%s/ HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n" % authority,
        b"GET / HTTP/1.1\r\nHost: %s\r\n\r\n" % authority,
        b"GET ftp://%s/ HTTP/1.1\r\n\r\n" % authority,
        b"\x16\x03\x01\x00\x05",
    )
    assert heard.count(b"HTTP/1.1 5") == 4, heard
    secrets = (SERVER_NAME, PUBLIC_NAME, RESOLVER_NAME, "ech-workers.test", TOKEN, "another-token", PATH, "127.0.0.1")
    assert [secret for secret in secrets if secret.encode() in heard] == [], heard


@pytest.mark.parametrize("mode", ["--yamux", "--no-yamux"])
def test_wrong_token(site: Site, targets: dict[str, int], mode: str) -> None:
    proxy = site.proxy(site.server().port, mode, token="another-token", wait=False)
    assert_fails_soon_and_says_why_once(proxy, r"does not accept this token", targets)


def test_wrong_path(site: Site, targets: dict[str, int]) -> None:
    proxy = site.proxy(site.server().port, path="/elsewhere", wait=False)
    assert_fails_soon_and_says_why_once(proxy, r"token.*path|path.*token", targets)


CHALLENGE = b"HTTP/1.1 403 Forbidden\r\nCF-Mitigated: challenge\r\nCF-Ray: 8a-AMS\r\nContent-Length: 0\r\n\r\n"
BLOCKED = b"HTTP/1.1 403 Forbidden\r\nCF-Ray: 8a-AMS\r\nContent-Length: 16\r\n\r\nerror code: 1020"
ELSEWHERE = b"HTTP/1.1 302 Found\r\nLocation: https://login.test/?next=/ws\r\nContent-Length: 0\r\n\r\n"
BUSY = b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: 120\r\nContent-Length: 0\r\n\r\n"
NO_ORIGIN = b"HTTP/1.1 522 \r\nContent-Length: 0\r\n\r\n"


@pytest.mark.parametrize("mode", ["--yamux", "--no-yamux"])
@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (CHALLENGE, r"websocket: .*CDN.*challenge.*403 Forbidden"),
        (BLOCKED, r"websocket: .*CDN.*refuses.*403 Forbidden.*1020"),
        (ELSEWHERE, r"websocket: .*redirect: 302 Found, to https://login.test/\?next=/ws"),
        (BUSY, r"websocket: .*429 Too Many Requests.*wait 120 s"),
        (NO_ORIGIN, r"websocket: .*CDN.*does not reach it.*522"),
    ],
    ids=["challenge", "blocked", "redirect", "busy", "origin"],
)
def test_cdn_that_answers_for_the_server(
    site: Site, targets: dict[str, int], answer: bytes, words: str, mode: str
) -> None:
    with Answering(lambda head: answer, site.inner) as cdn:
        site.publish(cdn.port, None)
        proxy = site.proxy(cdn.port, "--no-ech", mode, wait=False)
        assert_fails_soon_and_says_why_once(proxy, words, targets)
        assert "token: " not in proxy.process.output


@pytest.mark.parametrize("reply", ["optimistic", "confirmed"])
@pytest.mark.parametrize("mode", ["--yamux", "--no-yamux"])
def test_target_that_cannot_be_had_is_told_without_a_name(site: Site, mode: str, reply: str) -> None:
    proxy = site.proxy(site.server().port, mode, "--reply", reply)
    request = b"http://127.0.0.1:%d/" % unused_port()
    heard = told(proxy, b"GET %s HTTP/1.1\r\n\r\n" % request, b"HEAD %s HTTP/1.1\r\n\r\n" % request)
    assert heard.count(b"HTTP/1.1 502 Bad Gateway\r\n") == 2, heard
    assert b"127.0.0.1" not in heard
    assert b"ech-workers.test" not in heard


@pytest.mark.parametrize("mode", ["--yamux", "--no-yamux"])
def test_unreachable_server(site: Site, targets: dict[str, int], mode: str) -> None:
    port = unused_port()
    site.publish(port, site.key.base64)
    assert_fails_soon_and_says_why_once(site.proxy(port, mode, wait=False), r"(?i)\btcp\b.*refused", targets)


def test_server_that_never_answers(site: Site, targets: dict[str, int]) -> None:
    """A port that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as silent:
        port = silent.getsockname()[1]
        site.publish(port, site.key.base64)
        proxy = site.proxy(port, wait=False)
        started = time.monotonic()
        failed = curl(proxy, "socks5", f"http://localhost:{targets['http']}/", timeout=20)
        assert failed.returncode == 97
        assert time.monotonic() - started < REPLY_LIMIT
        proxy.process.wait_line(r"(?i)tls.*(time|answer)", 20)


def test_server_that_closes_at_the_hello(site: Site, targets: dict[str, int]) -> None:
    with Tap() as blocked:
        site.publish(blocked.port, site.key.base64)
        assert_fails_soon_and_says_why_once(
            site.proxy(blocked.port, wait=False), r"(?i)\btls\b.*right after the ClientHello", targets
        )


def test_unknown_authority(site: Site, targets: dict[str, int]) -> None:
    server = site.server(publish=False)
    proxy = site.proxy(
        server.port, "--ech-config", site.key.base64, "--server-ip", "127.0.0.1", trust=False, wait=False
    )
    assert_fails_soon_and_says_why_once(proxy, r"(?i)certificate.*(unknown|not trusted|issuer|authority)", targets)


def test_expired_certificate(site: Site, targets: dict[str, int], authority: Authority) -> None:
    server = site.server(certificate=authority.issue(SERVER_NAME, expired=True))
    assert_fails_soon_and_says_why_once(site.proxy(server.port, wait=False), r"(?i)certificate.*expired", targets)


def test_certificate_for_another_name(site: Site, targets: dict[str, int], authority: Authority) -> None:
    server = site.server(certificate=authority.issue("other.ech-workers.test"))
    assert_fails_soon_and_says_why_once(site.proxy(server.port, wait=False), r"(?i)certificate.*name", targets)


def test_no_https_record(site: Site, targets: dict[str, int]) -> None:
    server = site.server(publish=False)
    site.resolver.add(SERVER_NAME, "A", "127.0.0.1")
    assert_fails_soon_and_says_why_once(site.proxy(server.port, wait=False), r"(?i)no HTTPS record", targets)


def test_https_record_without_ech(site: Site, targets: dict[str, int]) -> None:
    server = site.server(publish=False)
    site.publish(server.port, None)
    assert_fails_soon_and_says_why_once(site.proxy(server.port, wait=False), r"(?i)record.*\bech\b", targets)


def test_resolver_down(site: Site, targets: dict[str, int]) -> None:
    server = site.server()
    site.resolver.stop()
    assert_fails_soon_and_says_why_once(site.proxy(server.port, wait=False), r"(?i)resolver.*refused", targets)


@pytest.mark.parametrize("behaviour", ["servfail", "http-500", "garbage"])
def test_resolver_that_fails(site: Site, targets: dict[str, int], behaviour: str) -> None:
    server = site.server()
    site.resolver.behaviour = behaviour  # type: ignore[assignment]
    words = {"servfail": "SERVFAIL", "http-500": "500", "garbage": "answer|message"}[behaviour]
    assert_fails_soon_and_says_why_once(site.proxy(server.port, wait=False), rf"(?i)resolver.*({words})", targets)


def test_resolver_comes_back(site: Site, targets: dict[str, int]) -> None:
    server = site.server()
    site.resolver.behaviour = "servfail"
    proxy = site.proxy(server.port, wait=False)
    proxy.process.wait_line("SERVFAIL", 15)
    site.resolver.behaviour = "answer"
    proxy.wait_session(40)
    assert fetch(proxy, "socks5", f"http://localhost:{targets['http']}/bytes/10") == pattern(10)[-1]


def test_server_comes_back(site: Site, targets: dict[str, int]) -> None:
    """The same port again after a crash: the proxy finds it by itself, and connections made meanwhile fail soon or wait."""
    server = site.server()
    proxy = site.proxy(server.port)
    before = len(proxy.process.lines)
    server.process.kill()
    proxy.process.wait_line(r"(?i)session|refused", after=before)
    site.server(listen=f"127.0.0.1:{server.port}")
    proxy.wait_session(40, after=before)
    assert fetch(proxy, "socks5", f"http://localhost:{targets['http']}/bytes/10") == pattern(10)[-1]


def test_stale_ech_is_mended_by_retry_configurations(site: Site, targets: dict[str, int], tmp_path: Path) -> None:
    """The resolver still has an old key: the server's authenticated retry configuration is used and remembered."""
    stale = ech_key(tmp_path / "stale", PUBLIC_NAME, 99)
    server = site.server()
    site.publish(server.port, stale.base64)
    proxy = site.proxy(server.port)
    assert fetch(proxy, "socks5", f"http://localhost:{targets['http']}/bytes/10") == pattern(10)[-1]


def test_stale_ech_without_retry_configurations(
    site: Site, targets: dict[str, int], tmp_path: Path, processes: Processes, go_peers: dict[str, Path]
) -> None:
    stale = ech_key(tmp_path / "stale", PUBLIC_NAME, 99)
    server = processes.start(
        go_peers["deployed_server"], "-certificate", f"{site.outer.chain}:{site.outer.key}", "-token", TOKEN
    )
    port = int(server.wait_event("listening")["address"].rpartition(":")[2])
    site.publish(port, stale.base64)
    assert_fails_soon_and_says_why_once(
        site.proxy(port, wait=False), r"(?i)\bech\b.*(reject|turned off|disabled|not accept)", targets
    )


def test_tls_1_2_only_server(
    site: Site, targets: dict[str, int], processes: Processes, go_peers: dict[str, Path]
) -> None:
    server = processes.start(
        go_peers["deployed_server"],
        "-certificate",
        f"{site.outer.chain}:{site.outer.key}",
        "-token",
        TOKEN,
        "-tls",
        "1.2",
    )
    port = int(server.wait_event("listening")["address"].rpartition(":")[2])
    site.publish(port, site.key.base64)
    assert_fails_soon_and_says_why_once(site.proxy(port, wait=False), r"(?i)\b(tls|ech)\b", targets)


def test_port_in_use(site: Site, processes: Processes) -> None:
    server = site.server()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        process = processes.start(*site.proxy_arguments(server.port, "--listen", listen), env=site.environment)
        assert process.wait() == 12
        assert re.search(rf"{listen}.*in use", process.output), process.output
        assert "Traceback" not in process.output


def test_server_port_in_use(site: Site, processes: Processes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        process = processes.start(
            COMMAND,
            "server",
            "--listen",
            listen,
            "--cert",
            site.inner.chain,
            "--key",
            site.inner.key,
            "--token",
            TOKEN,
            "--path",
            PATH,
        )
        assert process.wait() == 12
        assert re.search(rf"{listen}.*in use", process.output), process.output


@pytest.mark.parametrize(
    ("options", "names"),
    [
        (["--server", "https://"], "--server"),
        (["--server", "secret.test/ws", "--token", "two words"], "--token"),
        (["--server", "secret.test/ws", "--ech-config", "%%%"], "--ech-config"),
        (["--server", "secret.test/ws", "--ca-file", "/dev/null/missing.pem"], "--ca-file"),
        (["--server", "secret.test/ws", "--profile", "lynx"], "--profile"),
        (["--server", "secret.test/ws", "--doh-server", "https://resolver.test/dns-query"], "--doh-ip"),
        (["--server", "secret.test/ws", "--listen", "1080x"], "--listen"),
        (["--server", "192.0.2.1/ws"], "--server"),
        ([], "--server"),
    ],
)
def test_wrong_option_is_named_in_one_line(processes: Processes, options: list[str], names: str) -> None:
    process = processes.start(COMMAND, "proxy", *options)
    assert process.wait() == 2
    assert names in process.output
    assert "Traceback" not in process.output


@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM"])
def test_signal_ends_both_ends_cleanly(site: Site, targets: dict[str, int], number: str) -> None:
    import signal

    server = site.server()
    proxy = site.proxy(server.port)
    assert fetch(proxy, "socks5", f"http://localhost:{targets['http']}/bytes/10") == pattern(10)[-1]
    for process in (proxy.process, server.process):
        process.signal(signal.Signals[number])
        assert process.wait(10) == 0, process.output
        assert "Traceback" not in process.output
