"""ECH between our two ends and others' implementations: Go's crypto/tls as client and server, curl with BoringSSL as client. What crosses the wire is recorded, and never holds the server's name."""

from __future__ import annotations

import base64
import io
import json
import re
import struct
from typing import TYPE_CHECKING, Any

import pytest

from harness.client_hello import KEY_SHARE, Hello, client_hellos
from harness.curl import curl, fetch
from harness.ech import ech_key
from harness.processes import run
from harness.requirements import missing
from harness.tap import Tap
from harness.targets import pattern, pattern_sha256
from harness.tunnel import COMMAND, PATH, PUBLIC_NAME, SERVER_NAME, TOKEN, Site
from harness.waiting import wait_until

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable
    from pathlib import Path

    from curl_cffi import Curl, CurlOpt

    from harness.deployed import DeployedServer

    Start = Callable[..., DeployedServer]

PROFILES = ["firefox-120", "firefox-153"]
LOOPBACK = ["127.0.0.1", "::1"]
P384 = 0x0018


def bracketed(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def assert_only_public_name(tap: Tap) -> None:
    wait_until(lambda: PUBLIC_NAME.encode() in tap.everything, "a hello with the public name")
    assert SERVER_NAME.encode() not in tap.everything.lower()
    assert TOKEN.encode() not in tap.everything


def publish(site: Site, tap: Tap, host: str, ech: str) -> None:
    """The tap's address as the server's."""
    site.publish(tap.port, ech)
    if ":" in host:
        site.resolver.remove(SERVER_NAME, "A")
        site.resolver.add(SERVER_NAME, "AAAA", host)


# ---------------------------------------------------------------- our client, Go's server


@pytest.mark.parametrize("host", LOOPBACK)
@pytest.mark.parametrize("profile", PROFILES)
def test_go_server_accepts(
    site: Site, deployed_server: Start, targets: dict[str, int], profile: str, host: str
) -> None:
    server = deployed_server("-listen", bracketed(host, 0), publish=False)
    with Tap((host, server.port), host) as tap:
        publish(site, tap, host, site.key.base64)
        proxy = site.proxy(tap.port, "--profile", profile)
        assert fetch(proxy, "socks5", f"http://localhost:{targets['http']}/bytes/100000") == b"".join(pattern(100000))
        server.process.wait_event("handshake", ech=True, server_name=SERVER_NAME)
        assert_only_public_name(tap)


@pytest.mark.parametrize("host", LOOPBACK)
@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("stale", [False, True], ids=["accepted", "stale"])
def test_go_server_asks_for_another_key_share(
    site: Site, deployed_server: Start, targets: dict[str, int], profile: str, host: str, stale: bool
) -> None:
    """HelloRetryRequest: the second hello is the profile's again, but for the one share that was asked for."""
    server = deployed_server("-listen", bracketed(host, 0), "-curves", "P-384", publish=False)
    with Tap((host, server.port), host) as tap:
        key = ech_key(site.folder / "stale", PUBLIC_NAME, 99) if stale else site.key
        publish(site, tap, host, key.base64)
        proxy = site.proxy(tap.port, "--profile", profile)
        assert fetch(proxy, "socks5", f"http://localhost:{targets['http']}/bytes/100000") == b"".join(pattern(100000))
        server.process.wait_event("handshake", ech=True, server_name=SERVER_NAME)
        assert_only_public_name(tap)
        assert tap.connections == (2 if stale else 1)
        for sent in tap.sent:
            first, second = map(Hello.parse, client_hellos(bytes(sent)))
            assert [number for number, _ in second.shares] == [P384]
            assert without_shares(first) == without_shares(second)


def without_shares(hello: Hello) -> list[object]:
    # The second hello's payload says which the first one's configuration was by leaving the key out.
    return [
        hello.version,
        hello.session_id,
        hello.cipher_suites,
        hello.numbers,
        [content for number, content in hello.extensions if number not in (KEY_SHARE, 0xFE0D)],
    ]


@pytest.mark.parametrize("host", LOOPBACK)
@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("curves", ["", "P-384"], ids=["first-hello", "second-hello"])
def test_go_server_that_ignores_ech_gets_no_more_than_the_public_name(
    site: Site, deployed_server: Start, targets: dict[str, int], profile: str, host: str, curves: str
) -> None:
    """It has a good certificate for the public name, and says nothing of ECH: browsers would go on without. Never here."""
    server = deployed_server("-listen", bracketed(host, 0), "-curves", curves, ech=False, publish=False)
    with Tap((host, server.port), host) as tap:
        publish(site, tap, host, site.key.base64)
        row = failing(check(site, tap.port, "--profile", profile))
        assert (row["layer"], row["code"]) == ("ech", "ech-disabled"), row
        proxy = site.proxy(tap.port, "--profile", profile, wait=False)
        assert curl(proxy, "socks5", f"http://localhost:{targets['http']}/bytes/10", timeout=20).returncode == 97
        assert_only_public_name(tap)
        assert server.process.events("session") == []


def test_retry_configurations_without_a_certificate_for_the_public_name_are_refused(
    site: Site, deployed_server: Start
) -> None:
    """Whoever cannot prove the public name could be anyone: nothing is learned, nothing more is sent."""
    server = deployed_server(publish=False, outer=False)
    stale = ech_key(site.folder / "stale", PUBLIC_NAME, 99)
    with Tap(("127.0.0.1", server.port)) as tap:
        site.publish(tap.port, stale.base64)
        for _ in range(2):
            row = failing(check(site, tap.port))
            assert (row["layer"], row["code"]) == ("certificate", "certificate-name"), row
        assert_only_public_name(tap)
        assert {event["server_name"] for event in server.process.events("handshake")} <= {PUBLIC_NAME}


@pytest.mark.parametrize("profile", PROFILES)
def test_go_server_of_tls_1_2_is_refused(site: Site, deployed_server: Start, profile: str) -> None:
    server = deployed_server("-tls", "1.2", publish=False)
    with Tap(("127.0.0.1", server.port)) as tap:
        site.publish(tap.port, site.key.base64)
        row = failing(check(site, tap.port, "--profile", profile))
        assert row["layer"] in ("tls", "ech"), row
        assert_only_public_name(tap)


# Before the ServerHello, in its record's header, in it, behind it, and in what is encrypted.
@pytest.mark.parametrize("after", [0, 3, 60, 127, 300, 700])
@pytest.mark.parametrize("curves", ["", "P-384"], ids=["", "other-share"])
def test_go_server_that_closes_in_the_middle_is_an_error(
    site: Site, deployed_server: Start, after: int, curves: str
) -> None:
    server = deployed_server("-cut-after", str(after), "-curves", curves, publish=False)
    with Tap(("127.0.0.1", server.port)) as tap:
        site.publish(tap.port, site.key.base64)
        row = failing(check(site, tap.port))
        assert row["layer"] in ("tls", "websocket", "yamux"), row
        assert_only_public_name(tap)


# ---------------------------------------------------------------- Go's client, our server


def go_client(
    site: Site, go_peers: dict[str, Path], tap: Tap, host: str, ech: str, *flags: str
) -> subprocess.CompletedProcess[str]:
    return run(
        go_peers["deployed_client"],
        *("-server", bracketed(host, tap.port), "-server-name", SERVER_NAME, "-token", TOKEN, "-path", PATH),
        "-ca",
        site.authority.path,
        *("-ech", ech, *flags),
        env={"GODEBUG": "tlssecpmlkem=1"},  # off for a module of Go 1.24
    )


@pytest.mark.parametrize("host", LOOPBACK)
@pytest.mark.parametrize("curves", ["", "SecP256r1MLKEM768,P-384"], ids=["first-hello", "second-hello"])
@pytest.mark.parametrize("stale", [False, True], ids=["accepted", "stale"])
def test_go_client(
    site: Site, go_peers: dict[str, Path], targets: dict[str, int], host: str, curves: str, stale: bool
) -> None:
    if curves and go_minor_version() < 26:
        missing("Go before 1.26 always sends a share that our server takes")
    server = site.server(listen=bracketed(host, 0), publish=False)
    key = ech_key(site.folder / "stale", PUBLIC_NAME, 99) if stale else site.key
    url = f"http://localhost:{targets['http']}/bytes/100000"
    with Tap((host, server.port), host) as tap:
        done = go_client(site, go_peers, tap, host, key.base64, "-curves", curves, "-fetch", url)
        events = [json.loads(line) for line in done.stdout.splitlines()]
        assert [len(client_hellos(bytes(sent))) for sent in tap.sent] == [2 if curves else 1]
        assert_only_public_name(tap)
    if stale:
        (failed,) = (event for event in events if event["event"] == "failed")
        assert failed["retry_configs"] == site.key.base64
        assert done.returncode == 1
    else:
        assert [event["sha256"] for event in events if event["event"] == "fetched"] == [pattern_sha256(100000)]
        assert [event["ech"] for event in events if event["event"] == "handshake"] == [True]


def test_each_of_several_keys_is_accepted(site: Site, go_peers: dict[str, Path], targets: dict[str, int]) -> None:
    """And a stale client is told of some of them."""
    keys = [site.key, *(ech_key(site.keys_folder, PUBLIC_NAME, number) for number in (8, 9))]
    stale = ech_key(site.folder / "stale", PUBLIC_NAME, 99)
    server = site.server(publish=False)
    url = f"http://localhost:{targets['http']}/bytes/1000"
    with Tap(("127.0.0.1", server.port)) as tap:
        for key in keys:
            done = go_client(site, go_peers, tap, "127.0.0.1", key.base64, "-fetch", url)
            assert done.returncode == 0, done.stdout
        done = go_client(site, go_peers, tap, "127.0.0.1", stale.base64, "-fetch", url)
        retry = base64.b64decode(json.loads(done.stdout.splitlines()[-1])["retry_configs"])
        assert set(configurations(retry)) <= {key.config_list[2:] for key in keys}
        assert retry
        assert_only_public_name(tap)


def test_go_client_finds_the_known_one_in_a_list_of_the_future(
    site: Site, go_peers: dict[str, Path], targets: dict[str, int]
) -> None:
    """A list as a server may hand it out one day; our own client takes the same entry (test below)."""
    server = site.server(publish=False)
    with Tap(("127.0.0.1", server.port)) as tap:
        url = f"http://localhost:{targets['http']}/bytes/1000"
        done = go_client(site, go_peers, tap, "127.0.0.1", of_the_future(site), "-fetch", url)
        assert done.returncode == 0, done.stdout
        assert_only_public_name(tap)


def test_our_client_finds_the_known_one_in_a_list_of_the_future(site: Site, deployed_server: Start) -> None:
    server = deployed_server(publish=False)
    with Tap(("127.0.0.1", server.port)) as tap:
        site.publish(tap.port, of_the_future(site))
        site.proxy(tap.port)
        assert_only_public_name(tap)


def of_the_future(site: Site) -> str:
    """An entry of an unknown version, then the server's own."""
    unknown = struct.pack("!HH", 0xFEFF, 7) + b"unknown"
    entries = unknown + site.key.config_list[2:]
    return base64.b64encode(struct.pack("!H", len(entries)) + entries).decode()


def configurations(config_list: bytes) -> list[bytes]:
    found, rest = [], config_list[2:]
    while rest:
        length = 4 + int.from_bytes(rest[2:4], "big")
        found.append(rest[:length])
        rest = rest[length:]
    return found


def go_minor_version() -> int:
    found = re.search(r"go1\.(\d+)", run("go", "version").stdout)
    assert found
    return int(found.group(1))


# ---------------------------------------------------------------- curl's client (BoringSSL), our server
# Whatever groups it is told, it sends a share that our server takes: there is no HelloRetryRequest between the two.


def curl_options(site: Site, host: str, port: int, ech: str) -> dict[CurlOpt, Any]:
    cffi = pytest.importorskip("curl_cffi", "0.16")
    options = cffi.CurlOpt
    address = f"[{host}]" if ":" in host else host
    return {
        options.ECH: f"ecl:{ech}".encode(),
        options.RESOLVE: [f"{SERVER_NAME}:{port}:{address}".encode()],
        options.CAINFO: str(site.authority.path).encode(),
    }


def curl_get(site: Site, host: str, port: int, ech: str, impersonate: str | None) -> tuple[int, bytes]:
    """The decoy, by a request of its own handle."""
    from curl_cffi import Curl, CurlInfo, CurlOpt

    body = io.BytesIO()
    handle: Curl = Curl()
    try:
        if impersonate is not None:
            handle.impersonate(impersonate)
        for option, value in curl_options(site, host, port, ech).items():
            handle.setopt(option, value)
        handle.setopt(CurlOpt.URL, f"https://{SERVER_NAME}:{port}/".encode())
        handle.setopt(CurlOpt.PROXY, b"")
        handle.setopt(CurlOpt.TIMEOUT, 20)
        handle.setopt(CurlOpt.WRITEDATA, body)
        handle.perform()
        status = handle.getinfo(CurlInfo.RESPONSE_CODE)
        assert isinstance(status, int)
        return status, body.getvalue()
    finally:
        handle.close()


@pytest.mark.parametrize("host", LOOPBACK)
@pytest.mark.parametrize("impersonate", [None, "firefox", "chrome"])
def test_curl_reads_the_decoy(site: Site, host: str, impersonate: str | None) -> None:
    server = site.server(listen=bracketed(host, 0), publish=False)
    with Tap((host, server.port), host) as tap:
        status, body = curl_get(site, host, tap.port, site.key.base64, impersonate)
        assert status == 200
        assert b"<html" in body.lower()
        assert_only_public_name(tap)


@pytest.mark.parametrize("impersonate", [None, "firefox"])
def test_curl_with_a_stale_key_is_rejected(site: Site, impersonate: str | None) -> None:
    from curl_cffi import CurlError

    server = site.server(publish=False)
    stale = ech_key(site.folder / "stale", PUBLIC_NAME, 99)
    with Tap(("127.0.0.1", server.port)) as tap:
        with pytest.raises(CurlError, match=r"(?i)ech"):
            curl_get(site, "127.0.0.1", tap.port, stale.base64, impersonate)
        assert_only_public_name(tap)


@pytest.mark.parametrize("impersonate", [None, "firefox"])
def test_curl_opens_a_websocket(site: Site, targets: dict[str, int], impersonate: str | None) -> None:
    from curl_cffi import requests

    server = site.server(publish=False)
    with Tap(("127.0.0.1", server.port)) as tap:
        socket = requests.WebSocket()
        try:
            socket.connect(
                f"wss://{SERVER_NAME}:{tap.port}{PATH}",
                headers={"Sec-WebSocket-Protocol": TOKEN},
                impersonate=impersonate,
                curl_options=curl_options(site, "127.0.0.1", tap.port, site.key.base64),
            )
            socket.send_str(f"CONNECT:127.0.0.1:{targets['echo']}|hello")
            assert socket.recv()[0] == b"CONNECTED"
            assert socket.recv()[0] == b"hello"
        finally:
            socket.close()
        assert_only_public_name(tap)


def check(site: Site, port: int, *options: str | Path) -> subprocess.CompletedProcess[str]:
    return run(
        COMMAND,
        *("check", "--json", "--server", f"{SERVER_NAME}:{port}{PATH}", "--token", TOKEN),
        *("--doh-server", site.resolver.url, "--doh-ip", "127.0.0.1", "--ca-file", site.authority.path, *options),
        env=site.environment,
    )


def failing(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """The row that decided."""
    assert done.returncode != 0, done.stdout
    rows: list[dict[str, Any]] = [json.loads(line) for line in done.stdout.splitlines()]
    (row,) = (row for row in rows if row["ok"] is False and row["decides"])
    return row
