"""Probes with real processes: how much gets through, where a path lets only the beginning of a connection through, in both modes."""

from __future__ import annotations

import contextlib
import re
import socket
import time
from typing import TYPE_CHECKING, Any

import pytest

from ech_workers import Tunnel, probes, routing, stalls
from ech_workers.config import ClientConfig, ListenAddress, ServerAddress, UpstreamConfig
from ech_workers.probes import ProbeCounts
from harness import socks
from harness.fleet import Fleet, Requests
from harness.tap import Tap
from harness.tunnel import PATH, SERVER_NAME, TOKEN
from harness.waiting import wait_until

from .test_check import assert_ends_at, check, rows_of
from .test_status_port import metric, status_address

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ech_workers.config import Mode
    from harness.tunnel import ServerProgram, Site

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
def test_new_connections_leave_a_server_whose_probes_stop_and_return_when_one_gets_through(
    site: Site, targets: dict[str, int], mode: Mode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No program sends anything before: probes alone tell that the first server's connections stop, and that they do no more."""
    monkeypatch.setattr(routing, "PROBATION_FIRST", 1.0)
    fleet = Fleet(site, [mode, "yamux"], networks=[0], limits={0: 18_000})
    try:
        wait_until(lambda: upstream(fleet.tunnel).stops_after is not None, "two probes stop", 60)
        first = upstream(fleet.tunnel)
        assert first.stops_after < 18_000
        assert (first.probes.stopped >= 2, first.probes.passed) == (True, 0)
        wait_until(lambda: fleet.roles[1] == "in use", "new connections go to the second", 20)
        requests = Requests(fleet.tunnel, targets["echo"])
        wait_until(lambda: len(requests.done) > 50, "requests are served")
        fleet.paths[0].limit = None
        wait_until(lambda: fleet.roles == ["in use", "standby"], "new connections go to the first", 60)
        assert upstream(fleet.tunnel).probes.passed >= 1
        assert upstream(fleet.tunnel).stops_after is None
        back = time.monotonic()
        wait_until(lambda: requests.served_since(back) > 50, "requests are served")
        requests.stop()
        assert requests.failed_since(0) == []
    finally:
        fleet.close()


@pytest.mark.parametrize("mode", MODES)
def test_a_server_that_stands_by_is_used_last_from_probes_that_stop_to_one_that_gets_through(
    site: Site, mode: Mode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probes, "STANDBY_INTERVAL", 1.0)
    monkeypatch.setattr(stalls, "DEMOTED_FIRST", 2.0)
    monkeypatch.setattr(routing, "PROBATION_FIRST", 1.0)
    fleet = Fleet(site, ["yamux", mode], limits={1: 18_000})

    def second() -> Any:
        return fleet.tunnel.status().upstreams[1]

    try:
        wait_until(lambda: second().stops_after is not None, "two probes stop", 60)
        assert second().stops_after < 18_000
        # Its time as the last one is soon over, but nothing has got through.
        wait_until(lambda: second().probes.stopped >= 3, "the next probe stops too", 60)
        assert second().role != "standby"
        fleet.paths[1].limit = None
        wait_until(lambda: second().role == "standby", "it stands by again", 60)
        assert second().probes.passed >= 1
        assert second().stops_after is None
        # The one in use is not probed: its traffic tells.
        assert upstream(fleet.tunnel).probes == ProbeCounts()
    finally:
        fleet.close()


def figures_of(server: ServerProgram) -> tuple[str, int]:
    return "127.0.0.1", int(server.process.wait_line(r"figures on http://\S*:(\d+)/").group(1))


@pytest.mark.parametrize("mode", MODES)
def test_the_metrics_of_both_ends_count_probes(site: Site, mode: Mode) -> None:
    server = site.server("--status-listen", "127.0.0.1:0")
    figures = figures_of(server)
    with Tap(("127.0.0.1", server.port)) as path:
        path.limit = 18_000
        site.publish(path.port, site.key.base64)
        options = (f"--{NAMES[mode]}", "--server-ip", "127.0.0.1/32", "--status-listen", "0")
        proxy = site.proxy(path.port, *options)
        shown = status_address(proxy)

        def count(outcome: str) -> float:
            value = metric(shown, "ech_workers_probes_total", outcome=outcome)
            assert value is not None
            return value

        assert (count("passed"), count("failed")) == (0, 0)
        wait_until(lambda: count("stopped") >= 1, "a probe stops", 40)
        path.limit = None
        wait_until(lambda: count("passed") == 1, "one gets through", 60)
        assert count("failed") == 0
        # Nothing is due after that one.
        assert metric(figures, "ech_workers_server_echoes_total") == count("stopped") + count("passed")


@pytest.mark.parametrize("mode", MODES)
def test_the_server_sends_back_64_kib_and_answers_more_with_a_reset(site: Site, mode: Mode) -> None:
    """Whoever names the reserved target gets this; nothing is connected to for it."""
    server = site.server("--status-listen", "127.0.0.1:0")
    figures = figures_of(server)
    proxy = site.proxy(server.port, f"--{NAMES[mode]}")
    sent = bytes(range(256)) * 256
    with socks.connect(proxy.address, "echo.invalid", 7) as stream:
        stream.sendall(sent)
        stream.shutdown(socket.SHUT_WR)
        assert socks.until_end(stream) == sent
    with socks.connect(proxy.address, "echo.invalid", 7) as stream:
        stream.sendall(sent)
        assert socks.exactly(stream, len(sent)) == sent

        def is_cut() -> bool:
            try:
                stream.sendall(b"x")
            except ConnectionError:
                return True
            return False

        wait_until(is_cut, "more is answered with a reset")
    assert metric(figures, "ech_workers_server_echoes_total") == 2
    assert metric(figures, "ech_workers_server_streams_failed_total") == 0
