"""What the manual promises of every connection, in one table: each line is tried in both modes, between the command's own two ends.

The tests beside this one go into detail. Here each promise stands once, so that one that is kept in one mode only is seen at once.
"""

import contextlib
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from harness import socks
from harness.ports import unused_port
from harness.silent import Silent
from harness.tunnel import Site

LIMIT = 20.0
RUST = Path(__file__).resolve().parents[2] / "rust"

Promise = Callable[[Site, dict[str, int], str], None]


def a_half_close_leaves_the_other_direction_open(site: Site, targets: dict[str, int], mode: str) -> None:
    proxy = site.proxy(site.server().port, mode)
    with socks.connect(proxy.address, "127.0.0.1", targets["digest"]) as connection:
        connection.sendall(b"all of it")
        connection.shutdown(socket.SHUT_WR)
        assert b'"bytes": 9' in socks.until_end(connection)


def a_reset_of_the_target_is_a_reset_for_the_program(site: Site, targets: dict[str, int], mode: str) -> None:
    proxy = site.proxy(site.server().port, mode)
    with socks.connect(proxy.address, "127.0.0.1", targets["reset"]) as connection:
        connection.sendall(b"x")
        with pytest.raises(ConnectionResetError):
            socks.until_end(connection)


def a_lost_session_is_a_reset_for_the_program(site: Site, targets: dict[str, int], mode: str) -> None:
    server = site.server()
    proxy = site.proxy(server.port, mode)
    with socks.connect(proxy.address, "127.0.0.1", targets["banner"]) as connection:
        assert connection.recv(100)
        server.process.kill()
        with pytest.raises(ConnectionResetError):
            socks.until_end(connection)


def a_stream_without_traffic_ends_after_the_idle_timeout_of_the_proxy(
    site: Site, targets: dict[str, int], mode: str
) -> None:
    proxy = site.proxy(site.server().port, mode, "--idle-timeout", "1")
    ends(proxy.address, targets["silent"])


def a_stream_without_traffic_ends_after_the_idle_timeout_of_the_server(
    site: Site, targets: dict[str, int], mode: str
) -> None:
    proxy = site.proxy(site.server("--idle-timeout", "1").port, mode)
    ends(proxy.address, targets["silent"])


def ends(proxy: tuple[str, int], port: int) -> None:
    """A connection on which nobody says anything is ended by the tunnel, and not as if all had been said."""
    with socks.connect(proxy, "127.0.0.1", port) as connection:
        connection.settimeout(LIMIT)
        with pytest.raises(ConnectionResetError):
            socks.until_end(connection)


def no_more_connections_than_allowed_are_taken(site: Site, targets: dict[str, int], mode: str) -> None:
    proxy = site.proxy(site.server().port, mode, "--max-connections", "1")
    with socks.connect(proxy.address, "127.0.0.1", targets["banner"]) as first:
        assert first.recv(100)
        second = socket.create_connection(proxy.address, timeout=LIMIT)
        # An end, or a reset where the greeting was on its way.
        with second, contextlib.suppress(ConnectionError):
            second.sendall(b"\x05\x01\x00")
            assert second.recv(2) == b""
        first.sendall(b"y")
        assert first.recv(1) == b"y"


def open_streams_outlive_the_stop_of_the_server_while_it_drains(site: Site, targets: dict[str, int], mode: str) -> None:
    server = site.server("--drain", "20")
    proxy = site.proxy(server.port, mode)
    with socks.connect(proxy.address, "127.0.0.1", targets["banner"]) as connection:
        assert connection.recv(100)
        server.process.signal(signal.SIGTERM)
        server.process.wait_line("stopping|draining|waiting", LIMIT)
        connection.sendall(b"still there")
        assert connection.recv(100) == b"still there"
    assert server.process.wait(LIMIT) == 0


def a_program_that_waits_for_it_is_told_why_its_target_failed(site: Site, targets: dict[str, int], mode: str) -> None:
    proxy = site.proxy(site.server().port, mode, "--reply", "confirmed")
    with pytest.raises(socks.ReplyError) as refused:
        socks.connect(proxy.address, "127.0.0.1", unused_port())
    # RFC 1928: connection refused.
    assert refused.value.reply == 5


def a_program_that_waits_for_it_is_told_in_time_of_a_target_that_does_not_answer(
    site: Site, targets: dict[str, int], mode: str
) -> None:
    proxy = site.proxy(site.server("--connect-timeout", "1").port, mode, "--reply", "confirmed")
    with Silent() as silent, pytest.raises(socks.ReplyError) as refused:
        socks.connect(proxy.address, *silent.address)
    # RFC 1928: TTL expired.
    assert refused.value.reply == 6


def a_program_is_told_when_there_is_no_session_within_the_open_timeout(
    site: Site, targets: dict[str, int], mode: str
) -> None:
    with Silent() as silent:
        proxy = site.proxy(silent.address[1], mode, "--open-timeout", "1", wait=False)
        with pytest.raises(socks.ReplyError) as refused:
            socks.connect(proxy.address, "127.0.0.1", targets["echo"])
    # RFC 1928: general failure.
    assert refused.value.reply == 1


def a_failure_after_an_early_reply_is_a_reset(site: Site, targets: dict[str, int], mode: str) -> None:
    proxy = site.proxy(site.server().port, mode)
    port = unused_port()
    with pytest.raises(ConnectionResetError), socks.connect(proxy.address, "127.0.0.1", port) as connection:
        socks.until_end(connection)


def the_proxy_ends_soon_when_it_is_told_to(site: Site, targets: dict[str, int], mode: str) -> None:
    proxy = site.proxy(site.server().port, mode)
    with socks.connect(proxy.address, "127.0.0.1", targets["silent"]):
        begun = time.monotonic()
        proxy.process.signal(signal.SIGTERM)
        assert proxy.process.wait(LIMIT) == 0
        assert time.monotonic() - begun < LIMIT


PROMISES: tuple[Promise, ...] = (
    a_half_close_leaves_the_other_direction_open,
    a_reset_of_the_target_is_a_reset_for_the_program,
    a_lost_session_is_a_reset_for_the_program,
    a_stream_without_traffic_ends_after_the_idle_timeout_of_the_proxy,
    a_stream_without_traffic_ends_after_the_idle_timeout_of_the_server,
    no_more_connections_than_allowed_are_taken,
    open_streams_outlive_the_stop_of_the_server_while_it_drains,
    a_program_that_waits_for_it_is_told_why_its_target_failed,
    a_program_that_waits_for_it_is_told_in_time_of_a_target_that_does_not_answer,
    a_program_is_told_when_there_is_no_session_within_the_open_timeout,
    a_failure_after_an_early_reply_is_a_reset,
    the_proxy_ends_soon_when_it_is_told_to,
)

# What takes half a minute on a real clock is tried on a virtual one.
SIMULATED = {
    "quiet connections are kept alive": "a_quiet_session_sends_pings_of_changing_length_in_both_modes",
    "by the server too": "a_quiet_session_of_a_server_sends_pings_in_both_modes",
    "a reader may stop or be slow": "a_reader_that_stops_for_minutes_or_is_slow_loses_nothing_in_either_mode_or_direction",
}


@pytest.mark.parametrize("mode", ["--yamux", "--no-yamux"])
@pytest.mark.parametrize("promise", PROMISES, ids=lambda promise: promise.__name__)
def test_a_promise_is_kept_in_both_modes(site: Site, targets: dict[str, int], promise: Promise, mode: str) -> None:
    promise(site, targets, mode)


@pytest.mark.parametrize("promise", SIMULATED)
def test_what_takes_long_is_in_the_simulation(promise: str) -> None:
    simulation = (RUST / "session/tests/simulation/main.rs").read_text()
    assert f"fn {SIMULATED[promise]}()" in simulation
