"""The status port of a real proxy: it follows the traffic and the server, ends with the proxy, and tells no secret."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import signal
import socket
import time
from typing import TYPE_CHECKING

import pytest
from prometheus_client.parser import text_string_to_metric_families
from websockets.sync.client import ClientConnection, connect

from harness.curl import curl, fetch
from harness.ports import unused_port
from harness.targets import pattern
from harness.waiting import wait_until

if TYPE_CHECKING:
    from harness.processes import Processes
    from harness.tunnel import ProxyProgram, Site


def status_address(proxy: ProxyProgram) -> tuple[str, int]:
    found = proxy.process.wait_line(r"status page on http://(127\.0\.0\.1):(\d+)/")
    return found[1], int(found[2])


def ask(address: tuple[str, int], path: str) -> tuple[int, str]:
    client = http.client.HTTPConnection(*address, timeout=10)
    with contextlib.closing(client):
        client.request("GET", path)
        answer = client.getresponse()
        return answer.status, answer.read().decode()


def watch(address: tuple[str, int]) -> ClientConnection:
    return connect(f"ws://{address[0]}:{address[1]}/feed", proxy=None)


def metric(address: tuple[str, int], name: str, **labels: str) -> float | None:
    samples = [
        sample for family in text_string_to_metric_families(ask(address, "/metrics")[1]) for sample in family.samples
    ]
    return next((sample.value for sample in samples if sample.name == name and sample.labels == labels), None)


@pytest.mark.alone
@pytest.mark.parametrize("mode", ["--yamux", "--no-yamux"])
def test_the_feed_and_the_metrics_follow_a_transfer(site: Site, targets: dict[str, int], mode: str) -> None:
    proxy = site.proxy(site.server().port, mode, "--status-listen", "0")
    address = status_address(proxy)
    assert ask(address, "/healthz") == (200, "ok\n")
    size = 3_000_000
    with watch(address) as feed:
        before = json.loads(feed.recv(timeout=5))["facts"]
        assert before["phase"] == "up"
        assert before["bytes_down"] == 0
        assert before["ech"]["public_name"] == "public.ech-workers.test"
        fetch(proxy, "socks5", f"http://localhost:{targets['http']}/bytes/{size}")
        highest = 0.0
        for _ in range(5):
            after = json.loads(feed.recv(timeout=5))["facts"]
            highest = max(highest, after["rates"]["down"])
        assert size <= after["bytes_down"] < size + 10_000
        assert highest > size / 2.5
        assert after["rates"]["down"] == 0
        assert after["connections"]["total"] == 1
        if mode == "--yamux":
            # A bulk transfer may have got another one beside it.
            session = max(after["sessions"], key=lambda each: each["streams_total"])
            assert session["ech"] == "accepted"
            assert session["streams_total"] == 1
            assert session["rtt_ms"] > 0
            assert session["tls_ms"] > 0
    assert metric(address, "ech_workers_bytes_total", direction="down") == after["bytes_down"]
    assert metric(address, "ech_workers_connections_total") == 1
    assert metric(address, "ech_workers_up") == 1


def test_a_target_that_fails_is_shown_with_its_reason(site: Site) -> None:
    proxy = site.proxy(site.server().port, "--status-listen", "0")
    port = unused_port()
    curl(proxy, "socks5", f"http://127.0.0.1:{port}/")
    with watch(status_address(proxy)) as feed:
        facts = json.loads(feed.recv(timeout=5))["facts"]
    assert facts["targets_failed"] == 1
    assert re.search(rf"127\.0\.0\.1:{port}.*refused", facts["last_target_failure"])


def test_healthz_says_that_the_server_is_gone_and_that_it_is_back(site: Site, targets: dict[str, int]) -> None:
    server = site.server()
    proxy = site.proxy(server.port, "--status-listen", "0")
    address = status_address(proxy)
    with watch(address) as feed:
        server.process.kill()
        wait_until(lambda: ask(address, "/healthz")[0] == 503, "it is noticed")
        wait_until(lambda: "refused" in ask(address, "/healthz")[1], "it says why")
        code, body = ask(address, "/healthz")
        assert code == 503
        assert re.fullmatch(r"tcp: .*refused.*; check the port.*\n", body)
        assert metric(address, "ech_workers_up") == 0

        def told() -> bool:
            facts = json.loads(feed.recv(timeout=5))["facts"]
            return facts["phase"] != "up" and facts["cause"] is not None and facts["cause"]["code"] == "tcp-refused"

        wait_until(told, "the feed says it too")
        site.server(listen=f"127.0.0.1:{server.port}")
        wait_until(lambda: ask(address, "/healthz") == (200, "ok\n"), "it is up again", 40)
    assert fetch(proxy, "socks5", f"http://localhost:{targets['http']}/bytes/10") == pattern(10)[-1]


def test_healthz_in_simple_mode_goes_by_the_last_dial(site: Site, targets: dict[str, int]) -> None:
    server = site.server()
    proxy = site.proxy(server.port, "--no-yamux", "--status-listen", "0")
    address = status_address(proxy)
    assert ask(address, "/healthz") == (200, "ok\n")
    server.process.kill()
    url = f"http://localhost:{targets['http']}/bytes/10"
    assert curl(proxy, "socks5", url).returncode != 0
    wait_until(lambda: "refused" in ask(address, "/healthz")[1], "it says why")
    assert ask(address, "/healthz")[0] == 503
    site.server(listen=f"127.0.0.1:{server.port}")
    wait_until(lambda: ask(address, "/healthz") == (200, "ok\n"), "it is up again", 40)


@pytest.mark.alone
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_ends_with_the_proxy_at_once_with_somebody_watching(site: Site, number: signal.Signals) -> None:
    proxy = site.proxy(site.server().port, "--status-listen", "0")
    address = status_address(proxy)
    with watch(address) as feed, socket.create_connection(address) as silent:
        feed.recv(timeout=5)
        started = time.monotonic()
        proxy.process.signal(number)
        assert proxy.process.wait(10) == 0
        assert time.monotonic() - started < 2
        list(feed)
        assert feed.close_code == 1001
        assert silent.recv(1) == b""
    assert "Traceback" not in proxy.process.output


def test_a_port_in_use_is_one_line(site: Site, processes: Processes) -> None:
    server = site.server()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        environment = {**site.environment, "ECH_WORKERS_STATUS_LISTEN": f"0 {port}"}
        process = processes.start(*site.proxy_arguments(server.port), env=environment)
        assert process.wait() == 12
    assert len(process.lines) == 1
    assert re.search(
        rf"local: cannot listen on 127\.0\.0\.1:{port}: the port is in use; .*--status-listen", process.output
    )


def test_a_page_for_the_network_is_not_opened_without_a_token(site: Site) -> None:
    options = ["--status-listen", "0.0.0.0:0"]
    process = site.processes.start(*site.proxy_arguments(site.server().port, *options), env=site.environment)
    assert process.wait() == 2
    assert "--status-listen: other machines could read the status page; give --status-token" in process.output
    proxy = site.proxy(site.server().port, *options, "--status-token", "distinctive")
    proxy.process.wait_line(r"status page on http://0\.0\.0\.0:\d+/")


def test_nothing_is_opened_without_the_option(site: Site) -> None:
    proxy = site.proxy(site.server().port)
    assert "status page" not in proxy.process.output
    maps = f"/proc/{proxy.process.pid}/maps"
    with open(maps) as mapped:  # noqa: PTH123
        assert "websockets" not in mapped.read()


@pytest.mark.parametrize("accepted", [True, False])
def test_no_secret_is_in_any_byte(site: Site, targets: dict[str, int], accepted: bool) -> None:
    """Of a tunnel that is up, and of one whose token is refused: everything that the port sends, as it goes over the wire."""
    token, path, password = "distinctive-token-0815", "/distinctive-path-0815", "distinctive-password-0815"
    server = site.server("--token", token, "--path", path if accepted else "/elsewhere")
    options = ("--status-listen", "0", "--username", "ann", "--password", password)
    proxy = site.proxy(server.port, *options, token=token, path=path, wait=accepted)
    address = status_address(proxy)
    if not accepted:
        proxy.process.wait_line("does not accept this token")
    sent = b""
    for request in (b"/", b"/healthz", b"/metrics", b"/nothing"):
        with socket.create_connection(address, timeout=10) as connection:
            connection.sendall(b"GET " + request + b" HTTP/1.1\r\nHost: localhost\r\n\r\n")
            while data := connection.recv(65536):
                sent += data
    with watch(address) as feed:
        for _ in range(2):
            sent += str(feed.recv(timeout=5)).encode()
    assert b"hidden.ech-workers.test" in sent
    if not accepted:
        assert b"does not accept this token" in sent
    for secret in (token, path, password):
        assert secret.strip("/").encode() not in sent
