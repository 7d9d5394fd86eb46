"""Probes with real processes: how much gets through, where a path lets only the beginning of a connection through, in both modes."""

from __future__ import annotations

import contextlib
import re
import socket
from typing import TYPE_CHECKING, Any

import pytest

from ech_workers import Tunnel
from ech_workers.config import ClientConfig, ListenAddress, ServerAddress, UpstreamConfig
from harness import socks
from harness.fleet import Fleet
from harness.tap import Tap
from harness.tunnel import PATH, SERVER_NAME, TOKEN
from harness.waiting import wait_until

from .test_check import assert_ends_at, check, rows_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ech_workers.config import Mode
    from harness.tunnel import Site

MODES: list[Mode] = ["yamux", "simple"]
NAMES = {"yamux": "yamux", "simple": "no-yamux"}
NETWORK = "127.0.0.0/29"


@contextlib.contextmanager
def many_addresses(site: Site, port: int, mode: Mode, cache: Path) -> Iterator[Tunnel]:
    """A tunnel to one server, which is on each address of a network."""
    server = UpstreamConfig(
        name="one",
        server=ServerAddress(SERVER_NAME, port, PATH),
        token=TOKEN,
        mode=mode,
        server_ips=(NETWORK,),
        ech_config=site.key.config_list,
    )
    config = ClientConfig(
        server=server.server,
        servers=(server,),
        ca_pem=site.authority.path.read_bytes(),
        listen=(ListenAddress("127.0.0.1", 0),),
        cache_dir=cache,
    )
    tunnel = Tunnel.from_config(config)
    tunnel.start()
    try:
        tunnel.wait_ready(20)
        yield tunnel
    finally:
        tunnel.close()


def upstream(tunnel: Tunnel) -> Any:
    return tunnel.status().upstreams[0]


@pytest.mark.parametrize("mode", MODES)
def test_check_says_how_long_64_kib_take(site: Site, mode: Mode) -> None:
    server = site.server()
    done = check(site, server.port, f"--{NAMES[mode]}", "--json", "--server-ip", "127.0.0.1")
    found = [row for row in rows_of(done) if row["subject"] == "64 KiB each way"]
    assert [row["ok"] for row in found] == [True], done.stdout + done.stderr
    assert found[0]["what"].startswith("64 KiB in ")


@pytest.mark.parametrize("mode", MODES)
def test_check_says_after_how_much_a_connection_stops(site: Site, mode: Mode) -> None:
    server = site.server()
    with Tap(("127.0.0.1", server.port)) as path:
        path.limit = 18_000
        site.publish(path.port, site.key.base64)
        done = check(site, path.port, f"--{NAMES[mode]}", "--json", "--server-ip", "127.0.0.1")
    layer = "yamux" if mode == "yamux" else "websocket"
    row = assert_ends_at(done, layer, "session-stalled", 10)
    found = re.match(r"the connection stops after (\d+) KB", row["what"])
    # What the handshake and the records' headers take is not payload, and what comes of a step that is cut need not count.
    assert found, row
    assert 4 <= int(found.group(1)) < 18


@pytest.mark.parametrize("mode", MODES)
def test_a_new_address_is_scored_and_comes_first_after_a_restart(site: Site, mode: Mode, tmp_path: Path) -> None:
    server = site.server(listen="0.0.0.0:0")
    with many_addresses(site, server.port, mode, tmp_path) as tunnel:
        wait_until(lambda: upstream(tunnel).probes.passed == 1, "the address is probed", 30)
        probe = upstream(tunnel).probe
        assert probe.passed_ms > 0
        used = probe.address
    with many_addresses(site, server.port, mode, tmp_path) as tunnel:
        assert [session.address for session in upstream(tunnel).sessions] == [used]
        assert upstream(tunnel).addresses[0] == used.rpartition(":")[0]


@pytest.mark.parametrize("mode", MODES)
def test_an_address_by_which_connections_stop_is_left(site: Site, mode: Mode, tmp_path: Path) -> None:
    server = site.server()
    path = Tap(("127.0.0.1", server.port), host="0.0.0.0")
    path.limit = 18_000
    try:
        with many_addresses(site, path.port, mode, tmp_path) as tunnel:
            wait_until(lambda: upstream(tunnel).probes.stopped >= 1, "a probe stops", 40)
            assert upstream(tunnel).probe.received < 18_000
            left = upstream(tunnel).probe.address.rpartition(":")[0]
            path.limit = None
            wait_until(lambda: upstream(tunnel).probes.passed >= 1, "another address lets 64 KiB through", 60)
            assert upstream(tunnel).probe.address.rpartition(":")[0] != left
    finally:
        path.stop()


@pytest.mark.parametrize("mode", MODES)
def test_the_server_counts_probes_and_sends_back_no_more_than_64_kib(
    site: Site, mode: Mode, targets: dict[str, int]
) -> None:
    """Whoever names the target gets the same from our server; nothing else is reached by it."""
    fleet = Fleet(site, [mode])
    try:
        sent = bytes(range(256)) * 256
        with socks.connect(fleet.port, "echo.invalid", 7) as stream:
            stream.settimeout(20)
            stream.sendall(sent)
            stream.shutdown(socket.SHUT_WR)
            back = bytearray()
            while piece := stream.recv(65536):
                back += piece
        assert bytes(back) == sent
        with socks.connect(fleet.port, "127.0.0.1", targets["echo"]) as stream:
            stream.sendall(b"hello")
            assert stream.recv(5) == b"hello"
    finally:
        fleet.close()
