"""What a reload of the proxy changes, seen by what becomes of connections and not by what the program says of it."""

from __future__ import annotations

import contextlib
import json
import socket
from typing import TYPE_CHECKING, Any

import pytest

from harness import socks
from harness.alone import MAY_UNSHARE, alone
from harness.processes import Processes, python_program, run
from harness.tunnel import COMMAND, ProxyProgram, Site
from harness.unread import Beside, unread_downloads
from harness.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
MIB = 1 << 20


class Proxy:
    """A proxy with a configuration file, which a test writes anew."""

    def __init__(self, site: Site, servers: dict[str, int], *options: str) -> None:
        """servers: the port of each by its name, in the order of their priority."""
        self.site = site
        self.servers = servers
        self.write(*options)
        process = site.processes.start(COMMAND, "proxy", "--plain", env=site.environment)
        self.program = ProxyProgram(process, int(process.wait_line(r"listening on (\S*):(\d+)\b").group(2)))
        self.program.wait_session()

    def write(self, *options: str) -> None:
        priorities = [f"priority = {number}" for number in range(len(self.servers))]
        self.site.write_configuration(self.servers, *options, of_each=priorities)

    def reload(self, *options: str) -> str:
        """With these options: what it says."""
        self.write(*options)
        done = run(COMMAND, "reload", env=self.site.environment)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def facts(self) -> dict[str, Any]:
        done = run(COMMAND, "status", "--json", env=self.site.environment)
        found: dict[str, Any] = json.loads(done.stdout)["facts"]
        return found

    def servers_of(self, port: int, count: int) -> set[str]:
        """The servers that so many new connections to the echo target on this port go by, all open at the same time."""
        with contextlib.ExitStack() as held:
            mine = set()
            for _ in range(count):
                connection = held.enter_context(socks.connect(self.program.address, "localhost", port))
                connection.sendall(b"a")
                assert socks.exactly(connection, 1) == b"a"
                done = run(COMMAND, "connections", "--json", env=self.site.environment)
                listed = [json.loads(line) for line in done.stdout.splitlines()]
                mine.add(max(listed, key=lambda one: int(one["id"]))["server"])
        return mine


@contextlib.contextmanager
def asked(proxy: ProxyProgram, port: int) -> Iterator[socket.socket]:
    """A program that has asked for a connection, and has not heard what became of that."""
    with socket.create_connection(proxy.address, timeout=20) as program:
        program.sendall(b"\x05\x01\x00")
        assert socks.exactly(program, 2) == b"\x05\x00"
        program.sendall(b"\x05\x01\x00\x01\x7f\0\0\x01" + port.to_bytes(2, "big"))
        yield program


@pytest.mark.parametrize("mode", ["yamux = true", "yamux = false"])
def test_another_time_for_opening_holds_for_connections_that_come(
    site: Site, targets: dict[str, int], mode: str
) -> None:
    """A server that says nothing: one connection waits by the first time and the next one, which is refused before it, by the second."""
    server = site.server(publish=False)
    fixed = (mode, 'reply = "confirmed"')
    proxy = Proxy(site, {"only": server.port}, *fixed, "open_timeout = 600")
    held = socket.create_server(("127.0.0.1", 0))
    silent = held.getsockname()[1]
    # In the place of a server that has gone away there is one that accepts connections and says nothing.
    proxy.servers = {"only": silent}
    with held:
        proxy.reload(*fixed, "open_timeout = 600")
        server.process.kill()
        wait_until(lambda: not proxy.facts()["sessions"], "the session is lost", 20)
        with asked(proxy.program, targets["echo"]) as patient:
            assert proxy.reload(*fixed, "open_timeout = 1") == "applied to what is new: open_timeout"
            with asked(proxy.program, targets["echo"]) as hasty:
                hasty.settimeout(20)
                assert socks.exactly(hasty, 2)[1] != socks.OK
            patient.settimeout(0.2)
            with pytest.raises(TimeoutError):
                patient.recv(1)


def test_another_policy_decides_where_the_next_connections_go(site: Site, targets: dict[str, int]) -> None:
    servers = {name: site.server(publish=False).port for name in ("one", "two")}
    proxy = Proxy(site, servers)

    def roles() -> list[str]:
        return [server["role"] for server in proxy.facts()["servers"]]

    wait_until(lambda: roles() == ["in use", "standby"], "the first is in use", 20)
    assert proxy.servers_of(targets["echo"], 6) == {"one"}
    assert proxy.reload('policy = "spread"') == "applied: policy"
    wait_until(lambda: roles() == ["in use", "in use"], "both are in use", 20)
    assert proxy.servers_of(targets["echo"], 6) == {"one", "two"}
    assert proxy.reload('policy = "priority"') == "applied: policy"
    wait_until(lambda: roles() == ["in use", "standby"], "the first alone is in use", 20)
    assert proxy.servers_of(targets["echo"], 6) == {"one"}


def test_another_standby_connects_the_second_server_and_lets_it_go(site: Site, targets: dict[str, int]) -> None:
    """Seen at the second server: how many sessions it has."""
    (first, _), (second, sessions) = site.counted_server(), site.counted_server()
    proxy = Proxy(site, {"one": first.port, "two": second.port}, 'standby = "cold"')
    assert proxy.servers_of(targets["echo"], 1) == {"one"}
    assert sessions() == 0
    assert proxy.reload('standby = "warm"') == "applied: standby"
    wait_until(lambda: sessions() == 1, "the second server is kept connected", 20)
    assert proxy.reload('standby = "cold"') == "applied: standby"
    wait_until(lambda: sessions() == 0, "the second server is let go", 40)
    assert proxy.servers_of(targets["echo"], 1) == {"one"}
    first.process.kill()
    wait_until(lambda: sessions() == 1, "it is dialled when the first one has failed", 40)


@MAY_UNSHARE
@pytest.mark.timeout(200)
@pytest.mark.parametrize("first", ["16M", "256M"])
def test_another_memory_limit_counts_at_once_for_the_session_that_is_open(
    site: Site, processes: Processes, first: str
) -> None:
    """With 16 MiB a session is not read any more when programs leave 39 MiB unread; with 256 MiB it is, without a new one."""

    def body() -> None:
        served = processes.start(*python_program("harness.targets"), str(site.folder), env={"PYTHONPATH": str(TESTS)})
        targets = served.wait_event("listening")
        server = site.server(publish=False)
        proxy = Proxy(site, {"only": server.port}, "sessions = 1", f'memory_limit = "{first}"')
        (session,) = (one["session"] for one in proxy.facts()["sessions"])
        beside = Beside(proxy.program, targets["echo"])
        with contextlib.closing(beside):
            if first != "16M":
                assert proxy.reload("sessions = 1", 'memory_limit = "16M"') == "applied: memory_limit"
            with unread_downloads(proxy.program, targets["http"], 150):
                beside.wait_stopped()
                before = proxy.facts()["bytes_down"]
                assert proxy.reload("sessions = 1", 'memory_limit = "256M"') == "applied: memory_limit"
                wait_until(lambda: proxy.facts()["bytes_down"] > before + 10 * MIB, "it is read again", 40)
                assert beside.answers(30)
                assert [one["session"] for one in proxy.facts()["sessions"]] == [session]

    alone(body)
