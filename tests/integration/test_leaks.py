"""The server's name must not be in any byte that the client sends in clear, whatever goes wrong. Recording listeners stand before the server and before the resolver."""

import base64
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.curl import curl, fetch
from harness.ech import ech_key
from harness.processes import Processes
from harness.secrecy import names_the_server
from harness.tap import Tap
from harness.targets import pattern
from harness.tunnel import PUBLIC_NAME, SERVER_NAME, TOKEN, Site
from harness.waiting import wait_until


def assert_name_is_hidden(*taps: Tap) -> None:
    for tap in taps:
        assert not names_the_server(tap.everything)
        assert TOKEN.encode() not in tap.everything


@pytest.mark.parametrize("mode", ["--yamux", "--no-yamux"])
def test_name_is_hidden_when_all_is_well(site: Site, targets: dict[str, int], mode: str) -> None:
    server = site.server(publish=False)
    with Tap(("127.0.0.1", server.port)) as before_server, Tap(("127.0.0.1", site.resolver.port)) as before_resolver:
        site.publish(before_server.port, site.key.base64)
        resolver = f"https://{site.resolver.name}:{before_resolver.port}/dns-query"
        proxy = site.proxy(before_server.port, mode, "--doh-server", resolver, "--doh-ip", "127.0.0.1", resolver=False)
        assert fetch(proxy, "socks5", f"http://localhost:{targets['http']}/bytes/100000") == b"".join(pattern(100000))
        assert before_server.connections >= 1
        assert before_resolver.connections >= 1
        assert PUBLIC_NAME.encode() in before_server.everything
        assert_name_is_hidden(before_server, before_resolver)


def malformed(site: Site, port: int) -> None:
    """The public key's length says more than there is."""
    broken = bytearray(site.key.config_list)
    broken[9:11] = b"\xff\xff"
    site.publish(port, base64.b64encode(broken).decode())


def truncated(site: Site, port: int) -> None:
    """The list's own length says more than there is."""
    site.publish(port, site.key.base64)
    whole = site.key.config_list
    site.resolver.replacements = [(whole, b"\xff\xff" + whole[2:])]


def unknown_version(site: Site, port: int) -> None:
    future = bytearray(site.key.config_list)
    future[2:4] = b"\xfe\xff"
    site.publish(port, base64.b64encode(future).decode())


def stale(site: Site, port: int) -> None:
    site.publish(port, ech_key(site.folder / "stale", PUBLIC_NAME, 99).base64)


def none(site: Site, port: int) -> None:
    site.publish(port, None)


def nothing(site: Site, port: int) -> None:
    site.resolver.add(SERVER_NAME, "A", "127.0.0.1")


def good(site: Site, port: int) -> None:
    site.publish(port, site.key.base64)


@pytest.mark.parametrize(
    ("record", "server_options"),
    [
        (nothing, ["-ech-retry-key"]),
        (none, ["-ech-retry-key"]),
        (malformed, ["-ech-retry-key"]),
        (truncated, ["-ech-retry-key"]),
        (unknown_version, ["-ech-retry-key"]),
        (stale, ["-ech-key"]),
        (good, []),
        (good, ["-tls", "1.2"]),
        (good, ["-alpn", "h2,http/1.1", "-tls", "1.2"]),
    ],
    ids=[
        "no-https-record",
        "record-without-ech",
        "malformed-list",
        "truncated-list",
        "unknown-version",
        "stale-key",
        "server-without-ech",
        "tls-1.2-only",
        "tls-1.2-only-h2",
    ],
)
def test_name_is_hidden_when_ech_fails(
    site: Site,
    targets: dict[str, int],
    processes: Processes,
    go_peers: dict[str, Path],
    record: Callable[[Site, int], None],
    server_options: list[str],
) -> None:
    """Nothing is sent that a listener could read, and no connection is made without ECH: curl gets nothing."""
    options: list[str | Path] = [*server_options]
    if options and str(options[0]).startswith("-ech"):
        options.append(site.key.path)
    server = processes.start(
        go_peers["deployed_server"],
        *(
            "-certificate",
            f"{site.outer.chain}:{site.outer.key}",
            "-certificate",
            f"{site.inner.chain}:{site.inner.key}",
        ),
        *("-token", TOKEN, *options),
    )
    port = int(server.wait_event("listening")["address"].rpartition(":")[2])
    with Tap(("127.0.0.1", port)) as tap, Tap(("127.0.0.1", site.resolver.port)) as before_resolver:
        record(site, tap.port)
        resolver = f"https://{site.resolver.name}:{before_resolver.port}/dns-query"
        proxy = site.proxy(tap.port, "--doh-server", resolver, "--doh-ip", "127.0.0.1", resolver=False, wait=False)
        assert curl(proxy, "socks5", f"http://localhost:{targets['http']}/bytes/10", timeout=20).returncode == 97
        proxy.process.wait_line(r"(?i)\bech\b|HTTPS record|TLS")
        if record in (stale, good):
            wait_until(lambda: tap.connections >= 1, "a connection to the server")
        else:
            assert tap.connections == 0
        assert_name_is_hidden(tap, before_resolver)
        assert server.events("session") == []


def test_name_is_hidden_from_a_listener_that_never_answers(site: Site, targets: dict[str, int]) -> None:
    with Tap() as tap:
        site.publish(tap.port, site.key.base64)
        proxy = site.proxy(tap.port, wait=False)
        curl(proxy, "socks5", f"http://localhost:{targets['http']}/bytes/10", timeout=20)
        wait_until(lambda: PUBLIC_NAME.encode() in tap.everything, "a hello")
        assert_name_is_hidden(tap)


def test_no_ech_is_the_only_way_to_send_the_name(site: Site, targets: dict[str, int]) -> None:
    """The test above can fail: with --no-ech the same listener does find the name."""
    server = site.server(ech=False, publish=False)
    with Tap(("127.0.0.1", server.port), hides_name=False) as tap:
        site.publish(tap.port, None)
        site.proxy(tap.port, "--no-ech")
        assert SERVER_NAME.encode() in tap.everything
