"""Openings that a server does not take are placed on another session, and nobody waits behind them."""

import contextlib
import signal
import socket
from collections.abc import Iterator

import pytest

from harness import socks
from harness.openings import Openings
from harness.tap import Tap
from harness.tunnel import ProxyProgram, ServerProgram, Site
from harness.waiting import wait_until

MODES = ["--yamux", "--no-yamux"]


@pytest.fixture
def path() -> Iterator[Tap]:
    """What the proxy takes for the server; it leads to one server or another."""
    with Tap() as tap:
        yield tap


def behind(path: Tap, site: Site, *options: str) -> ServerProgram:
    """A server to which the path leads from now on."""
    server = site.server("--drain", "30", *options, publish=False)
    path.upstream = ("127.0.0.1", server.port)
    return server


def led(path: Tap, site: Site, *options: str) -> tuple[ServerProgram, ProxyProgram]:
    """A proxy, and the server to which its path leads."""
    server = behind(path, site)
    site.publish(path.port, site.key.base64)
    return server, site.proxy(path.port, *options)


@contextlib.contextmanager
def echoing(proxy: ProxyProgram, port: int) -> Iterator[socket.socket]:
    """A connection that has carried a byte there and back."""
    with socks.connect(proxy.address, "127.0.0.1", port) as connection:
        connection.sendall(b"a")
        assert socks.exactly(connection, 1) == b"a"
        yield connection


# In simple mode a request waits in one connection alone, the one that was ready for it; and as what a program has sent may have
# reached its target, it goes elsewhere only if the program has sent nothing before the answer.
SIMPLE = ("--no-yamux", "--reply", "confirmed")


@pytest.mark.parametrize(("options", "count"), [((), 1), ((), 20), ((), 400), (SIMPLE, 1)])
def test_openings_that_wait_when_the_server_goes_are_served_by_its_successor(
    site: Site, targets: dict[str, int], path: Tap, options: tuple[str, ...], count: int
) -> None:
    """The server stands still, so it acknowledges nothing: some openings are with it already, and of 400 the rest waits in the
    session. Then it stops. Whether it has read those by then or not, none is lost."""
    first, proxy = led(path, site, "--open-timeout", "60", *options)
    first.process.signal(signal.SIGSTOP)
    openings = Openings(proxy, targets["echo"], count)
    # All of them are in the proxy.
    wait_until(openings.are_under_way, "the openings", 30)
    behind(path, site)
    first.process.signal(signal.SIGTERM)
    first.process.signal(signal.SIGCONT)
    openings.join()
    assert openings.failures == []
    assert openings.echoed == count


def test_openings_that_a_server_refuses_for_want_of_room_wait_for_it(site: Site, targets: dict[str, int]) -> None:
    """The server resets streams that it has no room for before it has acknowledged them."""
    server = site.server("--max-streams", "2")
    proxy = site.proxy(server.port, "--open-timeout", "60")
    openings = Openings(proxy, targets["echo"], 40)
    openings.join()
    assert openings.failures == []


def test_a_retired_session_that_is_then_cut_is_reported(site: Site, targets: dict[str, int], path: Tap) -> None:
    first, proxy = led(path, site)
    with echoing(proxy, targets["echo"]) as connection:
        behind(path, site)
        # It drains: the session takes no new streams, and goes on for this one.
        first.process.signal(signal.SIGTERM)
        proxy.process.wait_line("is stopping: it takes no new streams")
        connection.sendall(b"b")
        assert socks.exactly(connection, 1) == b"b"
        first.process.kill()
        proxy.process.wait_line("a session that was to end with its last stream was lost")
        with contextlib.suppress(ConnectionResetError):
            assert connection.recv(1) != b"", "half of the data looks whole"


def test_a_session_that_ends_after_its_last_stream_is_not_called_lost(
    site: Site, targets: dict[str, int], path: Tap
) -> None:
    first, proxy = led(path, site)
    with echoing(proxy, targets["echo"]):
        behind(path, site)
        first.process.signal(signal.SIGTERM)
        proxy.process.wait_line("is stopping: it takes no new streams")
    assert first.process.wait(30) == 0
    # Whatever is to be said of the first session is said before the second one's end.
    proxy.process.stop()
    assert "lost" not in proxy.process.output


@pytest.mark.parametrize("mode", MODES)
def test_an_end_does_not_wait_behind_openings(site: Site, targets: dict[str, int], mode: str) -> None:
    """The server stands still and hundreds of openings wait for it: SIGTERM ends the proxy all the same."""
    server = site.server()
    proxy = site.proxy(server.port, mode, "--open-timeout", "300")
    server.process.signal(signal.SIGSTOP)
    with contextlib.ExitStack() as held:
        try:
            for _ in range(400):
                connection = held.enter_context(socket.create_connection(proxy.address, timeout=30))
                connection.sendall(b"\x05\x01\x00")
                connection.sendall(b"\x05\x01\x00\x01\x7f\0\0\x01" + targets["echo"].to_bytes(2, "big"))
            proxy.process.signal(signal.SIGTERM)
            assert proxy.process.wait(20) == 0, proxy.process.output
        finally:
            server.process.signal(signal.SIGCONT)
