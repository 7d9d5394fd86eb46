"""System calls of a new connection, counted by strace at both ends.

Those on its own socket are the same for every connection. What connections share, such as a wait for events or a read from the tunnel, depends on
how many of them were ready at the same moment, so the total differs from run to run and from machine to machine.
"""

import contextlib
import os
import re
import signal
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from harness import socks
from harness.processes import Process
from harness.requirements import program
from harness.tunnel import Site
from harness.waiting import wait_until

# How many calls a wait for events takes depends on what else runs.
pytestmark = pytest.mark.alone

CONNECTIONS = 1000
AT_A_TIME = 16
LIMIT = 60.0

CALL = re.compile(r"^\d+ +(\w+)\((-?\d+)?(?:, EPOLL_CTL_\w+, (\d+))?")

RETURNED = re.compile(r"^\d+ +(?:<\.\.\. )?(\w+)(?:\(| resumed>).*\) += (\d+)")


@dataclass(frozen=True)
class Bounds:
    """For each connection. `own`: on its socket. What varies is in `total` alone, which has about a fifth of slack."""

    own: float
    total: float


BOUNDS = {
    # accept4, epoll_ctl; recvfrom and sendto for the greeting, recvfrom and writev for the request; recvfrom and writev for the
    # echo; recvfrom for the end; epoll_ctl, close.
    "proxy": Bounds(own=11, total=15),
    # socket, connect, epoll_ctl; writev, recvfrom for the echo; shutdown, recvfrom for the end; epoll_ctl, close.
    "server": Bounds(own=9, total=12.5),
}


class Trace:
    """The system calls of a program that is run under strace."""

    def __init__(self, file: Path) -> None:
        program("strace", "strace")
        self.file = file
        self.prefix = ("strace", "-f", "-qq", "-o", str(file), "-e", "signal=none", "-s", "0")
        self._from = 0

    @staticmethod
    def stop(process: Process) -> None:
        """Ends the program, and strace with it, which would leave it running."""
        for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
            os.kill(int(child), signal.SIGTERM)
        process.wait(LIMIT)

    def begin(self) -> None:
        self._from = self.file.stat().st_size

    def calls(self) -> tuple[Counter[str], Counter[str]]:
        """Since `begin`: on sockets that were closed since then, and all."""
        own: Counter[str] = Counter()
        total: Counter[str] = Counter()
        pending: dict[str, Counter[str]] = {}
        with self.file.open() as file:
            file.seek(self._from)
            for line in file:
                match = CALL.match(line)
                if match is None:
                    continue
                name, descriptor, registered = match.groups()
                total[name] += 1
                if name == "socket" or (name == "accept4" and " = -1 " not in line):
                    own[name] += 1
                    continue
                socket = registered or descriptor
                pending.setdefault(socket, Counter())[name] += 1
                if name == "close":
                    own += pending.pop(socket)
        return own, total

    def threads(self, process: Process, maker: str) -> list[list[str]]:
        """The names of the threads that used each socket that `maker` (accept4 or socket) made, in their order."""
        [child] = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        names = {task.name: (task / "comm").read_text().strip() for task in Path(f"/proc/{child}/task").iterdir()}
        open_now: dict[str, list[str]] = {}
        made: list[list[str]] = []
        for line in self.file.read_text().splitlines():
            name = names.get(line.split(maxsplit=1)[0], "")
            returned = RETURNED.match(line)
            if returned and returned[1] == maker:
                open_now[returned[2]] = [name]
                made.append(open_now[returned[2]])
                continue
            call = CALL.match(line)
            if call is None:
                continue
            used = open_now.get(call[3] or call[2] or "")
            if used is not None and used[-1] != name:
                used.append(name)
            if call[1] == "close":
                open_now.pop(call[2] or "", None)
        return made


def echoes(proxy: tuple[str, int], port: int, count: int) -> None:
    """New SOCKS5 connections, a few at a time, each for one echo of 64 bytes."""
    payload = bytes(range(64))

    def echo(_: int) -> None:
        with socks.connect(proxy, "127.0.0.1", port, timeout=LIMIT) as connection:
            connection.sendall(payload)
            assert socks.exactly(connection, len(payload)) == payload

    with ThreadPoolExecutor(AT_A_TIME) as pool:
        for _ in pool.map(echo, range(count)):
            pass


def test_a_new_connection_costs_few_system_calls(
    site: Site, targets: dict[str, int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    traces = {end: Trace(tmp_path / end) for end in BOUNDS}
    with contextlib.ExitStack() as stack:
        server = site.server(prefix=traces["server"].prefix)
        stack.callback(Trace.stop, server.process)
        known = ("--server-ip", "127.0.0.1", "--ech-config", site.key.base64)
        proxy = site.proxy(server.port, *known, prefix=traces["proxy"].prefix)
        stack.callback(Trace.stop, proxy.process)
        echoes(proxy.address, targets["echo"], 2 * AT_A_TIME)
        for trace in traces.values():
            trace.begin()
        echoes(proxy.address, targets["echo"], CONNECTIONS)
        found = {end: trace.calls() for end, trace in traces.items()}
    for end, bounds in BOUNDS.items():
        own, total = found[end]
        table = ", ".join(f"{name} {count / CONNECTIONS:.2f}" for name, count in total.most_common(12))
        said = f"{own.total() / CONNECTIONS:.2f} on its own socket, {total.total() / CONNECTIONS:.2f} in all ({table})"
        with capsys.disabled():
            print(f"\n{end}, system calls of a connection: {said}")
        # The last connections may still be ending, and a few more calls happen once.
        assert 0.95 * bounds.own <= own.total() / CONNECTIONS <= 1.02 * bounds.own, said
        assert total.total() / CONNECTIONS <= bounds.total, said


def test_sessions_stay_on_their_threads_and_handshakes_are_made_on_others(
    site: Site, targets: dict[str, int], tmp_path: Path
) -> None:
    traces = {end: Trace(tmp_path / end) for end in BOUNDS}
    with contextlib.ExitStack() as stack:
        server = site.server("--workers", "2", prefix=traces["server"].prefix)
        stack.callback(Trace.stop, server.process)
        known = ("--server-ip", "127.0.0.1", "--ech-config", site.key.base64, "--sessions", "2")
        proxy = site.proxy(server.port, *known, prefix=traces["proxy"].prefix)
        stack.callback(Trace.stop, proxy.process)

        def sessions() -> list[list[str]]:
            made = traces["server"].threads(server.process, "accept4")
            # Not those of its control socket.
            return [threads for threads in made if threads[0].startswith("ech-server")]

        def carry() -> bool:
            """A server knows a session by its first message: whether both have sent one."""
            echoes(proxy.address, targets["echo"], AT_A_TIME)
            return sum(len(threads) == 2 for threads in sessions()) == 2

        wait_until(carry, "both sessions carry traffic", LIMIT)
        echoes(proxy.address, targets["echo"], 200)
        assert sorted(sessions()) == [["ech-server", "ech-server-0"], ["ech-server", "ech-server-1"]]
        reached = traces["server"].threads(server.process, "socket")
        assert {name for threads in reached[-200:] for name in threads} == {"ech-server-0", "ech-server-1"}
        assert all(len(threads) == 1 for threads in reached[-200:]), reached
        made = traces["proxy"].threads(proxy.process, "accept4")
        local = [threads for threads in made if threads[0].startswith("ech-client")]
        assert len(local) >= 200
        # Accepted and negotiated on either, and carried on the session's.
        assert {name for threads in local for name in threads} == {"ech-client-0", "ech-client-1"}
