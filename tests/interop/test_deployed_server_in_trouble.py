"""Our client when the deployed server stands still, refuses, is cut off, or its targets reset."""

import contextlib
import signal
import socket
from collections.abc import Callable, Iterator

import pytest

from harness import socks
from harness.deployed import DeployedServer
from harness.openings import Openings
from harness.tap import Tap
from harness.tunnel import ProxyProgram, Site
from harness.waiting import wait_until

Start = Callable[..., DeployedServer]
MODES = ["--yamux", "--no-yamux"]


@pytest.fixture
def path() -> Iterator[Tap]:
    """What the proxy takes for the server."""
    with Tap() as tap:
        yield tap


def behind(path: Tap, site: Site, deployed_server: Start) -> DeployedServer:
    server = deployed_server(publish=False)
    path.upstream = ("127.0.0.1", server.port)
    site.publish(path.port, site.key.base64)
    return server


def serves(proxy: ProxyProgram, targets: dict[str, int], timeout: float = 10.0) -> bool:
    try:
        with socks.connect(proxy.address, "127.0.0.1", targets["echo"], timeout=timeout) as connection:
            connection.sendall(b"a")
            return socks.exactly(connection, 1) == b"a"
    except (OSError, EOFError, socks.ReplyError):
        return False


@pytest.mark.parametrize(("mode", "count"), [("--yamux", 400), ("--no-yamux", 20)])
def test_openings_wait_for_a_server_that_stands_still(
    site: Site, deployed_server: Start, targets: dict[str, int], mode: str, count: int
) -> None:
    """In yamux mode it refuses streams beyond its backlog of 256: none of them is lost."""
    server = deployed_server()
    proxy = site.proxy(server.port, mode, "--open-timeout", "60")
    server.process.signal(signal.SIGSTOP)
    try:
        openings = Openings(proxy, targets["echo"], count)
        wait_until(openings.are_under_way, "the openings", 30)
    finally:
        server.process.signal(signal.SIGCONT)
    openings.join()
    assert openings.failures == []


@pytest.mark.parametrize("count", [1, 20])
def test_openings_that_a_session_of_hashicorps_does_not_take_any_more_are_placed_on_another(
    site: Site, deployed_server: Start, targets: dict[str, int], path: Tap, count: int
) -> None:
    """The session says that it goes away while openings wait for it: it resets those that it has not read by then."""
    first = behind(path, site, deployed_server)
    proxy = site.proxy(path.port, "--open-timeout", "60")
    # It makes a session of what comes first.
    assert serves(proxy, targets)
    first.process.signal(signal.SIGSTOP)
    try:
        openings = Openings(proxy, targets["echo"], count)
        wait_until(openings.are_under_way, "the openings", 30)
        behind(path, site, deployed_server)
        first.process.signal(signal.SIGUSR1)
    finally:
        first.process.signal(signal.SIGCONT)
    openings.join()
    assert openings.failures == []
    assert openings.echoed == count
    assert first.process.wait_event("go-away", sent=True)
    proxy.process.wait_line("is stopping: it takes no new streams")


@pytest.mark.timeout(200)
@pytest.mark.parametrize("mode", MODES)
def test_a_path_that_freezes_is_left_and_found_again(
    site: Site, deployed_server: Start, targets: dict[str, int], path: Tap, mode: str
) -> None:
    behind(path, site, deployed_server)
    proxy = site.proxy(path.port, mode)
    assert serves(proxy, targets)
    path.thawed.clear()
    if mode == "--yamux":
        proxy.process.wait_line(r"session lost after .*has not answered a ping in time", 90)
    else:
        assert not serves(proxy, targets, 3.0)
    path.thawed.set()
    wait_until(lambda: serves(proxy, targets), "the server is used again", 60)


@pytest.mark.parametrize("mode", MODES)
def test_connections_that_are_cut_are_told_and_new_ones_work(
    site: Site, deployed_server: Start, targets: dict[str, int], path: Tap, mode: str
) -> None:
    behind(path, site, deployed_server)
    proxy = site.proxy(path.port, mode)
    with socks.connect(proxy.address, "127.0.0.1", targets["echo"]) as connection:
        connection.sendall(b"a")
        assert socks.exactly(connection, 1) == b"a"
        path.break_connections()
        with pytest.raises(ConnectionResetError):
            while connection.recv(1) == b"":
                connection.sendall(b"b")
    wait_until(lambda: serves(proxy, targets), "the server is used again", 60)


@pytest.mark.parametrize("mode", MODES)
def test_a_target_that_resets_ends_its_connection_alone(
    site: Site, deployed_server: Start, targets: dict[str, int], mode: str
) -> None:
    proxy = site.proxy(deployed_server().port, mode)
    with (
        socks.connect(proxy.address, "127.0.0.1", targets["echo"]) as other,
        socks.connect(proxy.address, "127.0.0.1", targets["reset"]) as connection,
    ):
        connection.sendall(b"a")
        # The deployed server tells a reset as an end.
        with contextlib.suppress(ConnectionResetError):
            assert connection.recv(1) == b""
        other.sendall(b"a")
        assert socks.exactly(other, 1) == b"a"


def test_a_server_that_is_killed_and_started_again_is_used(
    site: Site, deployed_server: Start, targets: dict[str, int], path: Tap
) -> None:
    server = behind(path, site, deployed_server)
    proxy = site.proxy(path.port)
    server.process.kill()
    behind(path, site, deployed_server)
    wait_until(lambda: serves(proxy, targets), "the server is used again", 60)
    with socket.create_connection(proxy.address, timeout=20):
        pass
