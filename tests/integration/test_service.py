"""Both commands as a service: what systemd is told, and the socket that it hands over."""

import signal
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness import socks
from harness.tunnel import Site

# What systemd does: it opens the socket, and starts the command with it as descriptor 3.
HAND_OVER = """
import os, socket, sys
listener = socket.create_server(("127.0.0.1", 0))
print("handing over", listener.getsockname()[1], flush=True)
os.dup2(listener.fileno(), 3)
os.set_inheritable(3, True)
os.environ.update(LISTEN_FDS="1", LISTEN_PID=str(os.getpid()))
os.execv(sys.argv[1], sys.argv[1:])
"""


class Manager:
    """The service manager's socket."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "notify"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(self.path))
        self._socket.settimeout(20)

    def told(self) -> str:
        """The next thing that it is told."""
        return self._socket.recv(4096).decode()

    def told_until(self, wanted: str) -> list[str]:
        """Everything up to this."""
        found: list[str] = []
        while not found or found[-1] != wanted:
            found.append(self.told())
        return found

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def manager() -> Iterator[Manager]:
    # Not tmp_path: a socket's path may have no more than 107 bytes.
    with tempfile.TemporaryDirectory(prefix="ech-") as folder:
        made = Manager(Path(folder))
        yield made
        made.close()


def test_systemd_learns_that_the_server_is_ready_lives_and_ends(
    site: Site, manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(manager.path))
    monkeypatch.setenv("WATCHDOG_USEC", "100000")
    server = site.server()
    assert manager.told() == "READY=1"
    assert [manager.told() for _ in range(3)] == ["WATCHDOG=1"] * 3
    server.process.signal(signal.SIGTERM)
    assert set(manager.told_until("STOPPING=1")) <= {"WATCHDOG=1", "STOPPING=1"}
    assert server.process.wait() == 0


def test_systemd_learns_that_the_proxy_is_ready_lives_and_ends(
    site: Site, manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = site.server().port
    monkeypatch.setenv("NOTIFY_SOCKET", str(manager.path))
    monkeypatch.setenv("WATCHDOG_USEC", "100000")
    proxy = site.proxy(port)
    assert manager.told() == "READY=1"
    assert manager.told() == "WATCHDOG=1"
    proxy.process.signal(signal.SIGTERM)
    assert set(manager.told_until("STOPPING=1")) <= {"WATCHDOG=1", "STOPPING=1"}
    assert proxy.process.wait() == 0


def test_a_watchdog_that_is_meant_for_another_process_is_not_fed(
    site: Site, manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(manager.path))
    monkeypatch.setenv("WATCHDOG_USEC", "1000")
    monkeypatch.setenv("WATCHDOG_PID", "1")
    server = site.server()
    assert manager.told() == "READY=1"
    server.process.signal(signal.SIGTERM)
    assert manager.told() == "STOPPING=1"


def test_the_server_serves_on_the_socket_that_systemd_hands_over(site: Site, targets: dict[str, int]) -> None:
    server = site.server(listen="systemd", prefix=[sys.executable, "-c", HAND_OVER])
    assert server.process.wait_line(rf"handing over {server.port}\b")
    proxy = site.proxy(server.port)
    with socks.connect(proxy.address, "127.0.0.1", targets["echo"]) as stream:
        stream.sendall(b"hello")
        assert socks.exactly(stream, 5) == b"hello"


def test_without_a_socket_that_is_handed_over_the_server_says_so(site: Site) -> None:
    with pytest.raises(AssertionError, match="the service manager handed over no socket"):
        site.server(listen="systemd", publish=False)
