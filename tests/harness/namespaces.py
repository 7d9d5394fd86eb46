"""Networks of a test's own, in namespaces: what runs in them, and how it is started.

``python -m harness.namespaces NAME FOLDER`` runs one of the scenarios below, and prints "done".
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ech_workers import Tunnel, routing, rules
from ech_workers.config import ClientConfig, ServerAddress, UpstreamConfig
from ech_workers.endpoints import resolvers

from .authority import Authority
from .fleet import Requests
from .name_server import NameServer
from .processes import Processes, python_program
from .tunnel import PATH, SERVER_NAME, TOKEN, ServerProgram, Site
from .waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ech_workers.config import Mode

    from .processes import Process

TESTS = Path(__file__).resolve().parents[1]
SERVER = "203.0.113.1"
TARGET = "203.0.113.7"


# Where users may have namespaces of their own, everybody may do in theirs what root may.
UNSHARE = ("unshare", "--net", "--mount", "--propagation", "private", *(["--map-root-user"] if os.geteuid() else []))


def are_possible() -> bool:
    """Whether this user may make namespaces, and mount in them."""
    script = "ip link add x type veth peer name y && mount --bind /dev/null /etc/resolv.conf"
    if shutil.which("unshare") is None:
        return False
    return subprocess.run([*UNSHARE, "sh", "-c", script], capture_output=True, check=False).returncode == 0


def run(scenario: str, folder: Path, limit: float = 110.0) -> None:
    """Runs a scenario in a network of its own; AssertionError with all it said if it fails."""
    done = subprocess.run(
        [*UNSHARE, sys.executable, "-m", "harness.namespaces", scenario, folder],
        capture_output=True,
        text=True,
        timeout=limit,
        check=False,
        env={**os.environ, "PYTHONPATH": str(TESTS)},
    )
    assert done.stdout.splitlines()[-1:] == ["done"], done.stdout + done.stderr


PROBED, GIVEN_UP, LOST = "every session is probed", "does not answer on this network", "session lost"


class Recorded(logging.Handler):
    """What the package logs from now on."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.lines: list[str] = []
        logger = logging.getLogger("ech_workers")
        logger.setLevel(logging.INFO)
        logger.addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())

    def steps(self, *steps: str) -> list[str]:
        """Those of ``steps`` that were logged, in the order of their first time."""
        seen = [step for line in self.lines for step in steps if step in line]
        return list(dict.fromkeys(seen))


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


@contextlib.contextmanager
def _tunnel(site: Site, server: ServerProgram, address: str, **more: Any) -> Iterator[Tunnel]:
    config = ClientConfig(
        server=ServerAddress(SERVER_NAME, server.port, PATH),
        token=TOKEN,
        server_ips=(address,),
        ech_config=site.key.config_list,
        ca_pem=site.authority.path.read_bytes(),
        listen=(),
        **more,
    )
    with Tunnel.from_config(config) as tunnel:
        tunnel.wait_ready(30, patient=True)
        yield tunnel


@contextlib.contextmanager
def _greeter(address: str) -> Iterator[int]:
    """Says hello to whoever connects to this port."""

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                with connection:
                    connection.sendall(b"hello")

    with socket.create_server((address, 0), family=socket.AF_INET6) as listener:
        greeting = threading.Thread(target=serve)
        greeting.start()
        try:
            yield listener.getsockname()[1]
        finally:
            # A thread that accepts is not woken by a close.
            listener.shutdown(socket.SHUT_RDWR)
            greeting.join()


def nat64(site: Site) -> None:
    """A network with IPv6 alone, a translator for IPv4, and a resolver that knows its prefix. The server has an IPv4 address,
    which only the translator reaches: here the server itself is where that would send to. So has a target that a rule sends
    connections to directly, by its name and by its address."""
    _ip("link", "set", "lo", "up")
    _ip("address", "add", "64:ff9b::203.0.113.1/128", "dev", "lo")
    _ip("address", "add", f"64:ff9b::{TARGET}/128", "dev", "lo")
    _ip("-6", "route", "add", "default", "dev", "lo")
    known = {"ipv4only.arpa": ["64:ff9b::192.0.0.170", "64:ff9b::192.0.0.171"]}
    with NameServer(site.folder, known) as resolver:
        subprocess.run(["mount", "--bind", resolver.configuration, "/etc/resolv.conf"], check=True)
        server = site.server(listen="[64:ff9b::203.0.113.1]:0", publish=False)
        site.resolver.add("four.test", "A", TARGET)
        direct = {
            "rules": rules.read_all([{"to": "direct"}], {}),
            "resolvers": resolvers((site.resolver.url,), ("127.0.0.1",)),
        }
        with _tunnel(site, server, SERVER, **direct) as tunnel, _greeter(f"64:ff9b::{TARGET}") as port:
            (session,) = tunnel.status().sessions
            assert session.address == f"[64:ff9b::cb00:7101]:{server.port}", session
            for host in ("four.test", TARGET):
                with tunnel.create_connection((host, port), timeout=20) as connection:
                    assert connection.recv(5) == b"hello", host
            assert tunnel.snapshot().direct_total == 2
        assert set(resolver.questions) == {"ipv4only.arpa"}, resolver.questions


@contextlib.contextmanager
def _other_namespace() -> Iterator[tuple[int, tuple[str, ...]]]:
    """Another network, where the server is: the process that holds it, and what runs a command there."""
    holder = subprocess.Popen(["unshare", "-n", "sleep", "300"])
    try:
        # The namespace is there when it is another one than ours.
        own = Path("/proc/self/ns/net").readlink()
        wait_until(lambda: Path(f"/proc/{holder.pid}/ns/net").readlink() != own, "the other namespace is there", 20)
        there = ("nsenter", "-t", str(holder.pid), "-n")
        subprocess.run([*there, "ip", "link", "set", "lo", "up"], check=True)
        subprocess.run([*there, "ip", "address", "add", f"{SERVER}/32", "dev", "lo"], check=True)
        _ip("link", "set", "lo", "up")
        yield holder.pid, there
    finally:
        holder.kill()
        holder.wait()


def other_route(site: Site) -> None:
    """The machine's only way out goes away, and another one comes, from another address: what had begun on the first is dead,
    and nobody says so."""
    with _other_namespace() as (holder, there):
        for way in (1, 2):
            _ip("link", "add", f"way{way}", "type", "veth", "peer", "name", f"end{way}", "netns", str(holder))
            subprocess.run([*there, "ip", "address", "add", f"10.0.{way}.1/24", "dev", f"end{way}"], check=True)
            subprocess.run([*there, "ip", "link", "set", f"end{way}", "up"], check=True)
        _take(1)
        server = site.server(listen=f"{SERVER}:0", publish=False, prefix=there)
        with _tunnel(site, server, SERVER) as tunnel:
            first = tunnel.status().sessions[0].session
            logged = Recorded()
            _ip("link", "delete", "way1")
            _take(2)
            wait_until(
                lambda: any(each.session != first and not each.retiring for each in tunnel.status().sessions),
                "another session is up",
                60,
            )
            # How long it takes is the machine's affair; what found it out is ours: the session's own ping, 15 s and more later,
            # would have had it lost instead.
            assert logged.steps(PROBED, GIVEN_UP, LOST) == [PROBED, GIVEN_UP], logged.lines


def other_route_simple(site: Site) -> None:
    """The same in simple mode, where a connection waits for its first use: it is as dead as the others, and is not used."""
    with _other_namespace() as (holder, there):
        for way in (1, 2):
            _ip("link", "add", f"way{way}", "type", "veth", "peer", "name", f"end{way}", "netns", str(holder))
            subprocess.run([*there, "ip", "address", "add", f"10.0.{way}.1/24", "dev", f"end{way}"], check=True)
            subprocess.run([*there, "ip", "link", "set", f"end{way}", "up"], check=True)
        _take(1)
        targets = site.processes.start(
            *there, *python_program("harness.targets"), site.folder, env={"PYTHONPATH": str(TESTS)}
        ).wait_event("listening")
        server = site.server(listen=f"{SERVER}:0", publish=False, prefix=there)
        with _tunnel(site, server, SERVER, mode="simple") as tunnel:
            logged = Recorded()
            _ip("link", "delete", "way1")
            _take(2)
            wait_until(lambda: PROBED in " ".join(logged.lines), "the change is seen", 20)
            # Until the machine has the new way, dials may fail; then the tunnel is ready again.
            tunnel.wait_ready(60, patient=True)
            with tunnel.create_connection(("127.0.0.1", targets["echo"]), 30.0) as stream:
                stream.sendall(b"hello")
                assert stream.recv(5) == b"hello"
            assert tunnel.snapshot().dials_total >= 2


@contextlib.contextmanager
def _far_server(site: Site, milliseconds: int) -> Iterator[tuple[ServerProgram, dict[str, tuple[str, int]]]]:
    """A server so far away, each way, and the targets beside it. The folder has the program that delays the link."""
    with _other_namespace() as (holder, there):
        site.processes.start(site.folder / "delay_link", "near", "far", str(milliseconds), "0").wait_line("ready")
        _ip("link", "set", "far", "netns", str(holder))
        _ip("address", "add", "10.0.1.2", "peer", "10.0.1.1", "dev", "near")
        _ip("link", "set", "near", "up")
        _ip("route", "add", "default", "via", "10.0.1.1")
        subprocess.run([*there, "ip", "address", "add", "10.0.1.1", "peer", "10.0.1.2", "dev", "far"], check=True)
        subprocess.run([*there, "ip", "link", "set", "far", "up"], check=True)
        targets = site.processes.start(
            *there, *python_program("harness.targets"), site.folder, env={"PYTHONPATH": str(TESTS)}
        ).wait_event("listening")
        server = site.server(listen=f"{SERVER}:0", publish=False, prefix=there)
        yield server, {name: ("127.0.0.1", port) for name, port in targets.items() if name in ("http", "echo")}


def far_stream(site: Site) -> None:
    """A stream that moves as much as the first flights of a bulk transfer gets a session beside it, long before it is one, and the
    next stream goes there."""
    with (
        _far_server(site, 30) as (server, targets),
        _tunnel(site, server, SERVER) as tunnel,
        tunnel.create_connection(targets["http"], 30.0) as first,
    ):
        first.sendall(b"GET /bytes/100000 HTTP/1.1\r\n\r\n")
        received = 0
        while received < 100_000:
            received += len(first.recv(1 << 16))
        wait_until(lambda: len(tunnel.status().sessions) == 2, "there is a session beside it", 60)
        with tunnel.create_connection(targets["echo"], 30.0):
            sessions = [connection.session for connection in tunnel.connections()]
            assert len(set(sessions)) == 2, sessions


def far_probe(site: Site) -> None:
    """A probe moves more than such a stream and gets no session beside it; a program's stream is served while it is under way."""
    with _far_server(site, 400) as (server, targets), _tunnel(site, server, f"{SERVER}/32") as tunnel:
        assert len(tunnel.snapshot().sessions) == 1
        wait_until(lambda: tunnel.snapshot().sessions[0].streams == 1, "the probe is under way", 30)
        with tunnel.create_connection(targets["echo"], 30.0) as stream:
            stream.sendall(b"hello")
            assert stream.recv(5) == b"hello"
            # Two round trips against the probe's seven: this one did not wait for it.
            snapshot, probe = tunnel.snapshot(), tunnel.status().upstreams[0].probe
            assert probe is None, (probe, snapshot.sessions[0].streams_total, snapshot.dials_total)
        wait_until(lambda: tunnel.status().upstreams[0].probe is not None, "the probe is over", 60)
        status = tunnel.status().upstreams[0]
        assert (status.probes.passed, status.wanted, len(status.sessions)) == (1, 1, 1), status
        assert tunnel.snapshot().dials_total == 1


@contextlib.contextmanager
def _two_far_servers(
    site: Site, mode: Mode, milliseconds: tuple[int, int], megabits: int = 0
) -> Iterator[tuple[Tunnel, list[Process], list[ServerProgram], dict[str, tuple[str, int]]]]:
    """A tunnel with the policy "fastest" to two servers that are so far away, each way, by links of their own: those links, the
    servers, and the targets beside them."""
    with _other_namespace() as (holder, there):
        links = []
        for way, delay in enumerate(milliseconds, 1):
            near, far = f"near{way}", f"far{way}"
            link = site.processes.start(site.folder / "delay_link", near, far, str(delay), str(megabits))
            link.wait_line("ready")
            links.append(link)
            _ip("link", "set", far, "netns", str(holder))
            _ip("address", "add", f"10.0.{way}.2", "peer", f"10.0.{way}.1", "dev", near)
            _ip("link", "set", near, "up")
            subprocess.run(
                [*there, "ip", "address", "add", f"10.0.{way}.1", "peer", f"10.0.{way}.2", "dev", far], check=True
            )
            subprocess.run([*there, "ip", "link", "set", far, "up"], check=True)
        targets = site.processes.start(
            *there, *python_program("harness.targets"), site.folder, env={"PYTHONPATH": str(TESTS)}
        ).wait_event("listening")
        servers = [site.server(listen=f"10.0.{way}.1:0", publish=False, prefix=there) for way in (1, 2)]
        upstreams = tuple(
            UpstreamConfig(
                name=f"server-{way}",
                server=ServerAddress(SERVER_NAME, server.port, PATH),
                token=TOKEN,
                mode=mode,
                server_ips=(f"10.0.{way}.1",),
                ech_config=site.key.config_list,
            )
            for way, server in enumerate(servers, 1)
        )
        config = ClientConfig(
            server=upstreams[0].server,
            servers=upstreams,
            ca_pem=site.authority.path.read_bytes(),
            listen=(),
            policy="fastest",
        )
        with Tunnel.from_config(config) as tunnel:
            tunnel.wait_ready(30, patient=True)
            wait_until(lambda: "down" not in _roles(tunnel), "both servers are up", 30)
            yield (
                tunnel,
                links,
                servers,
                {name: ("127.0.0.1", port) for name, port in targets.items() if name != "event"},
            )


def _roles(tunnel: Tunnel) -> list[str]:
    return [upstream.role for upstream in tunnel.status().upstreams]


def _nearest(site: Site, mode: Mode) -> None:
    """New connections go to the nearer of two servers, to the other one when the path to that becomes slow, and back when the
    other one is lost. None fails, and those that are open stay where they are."""
    with _two_far_servers(site, mode, (80, 15)) as (tunnel, links, servers, targets):
        wait_until(lambda: _roles(tunnel) == ["standby", "in use"], "the nearer one is used", 90)
        requests = Requests(tunnel, targets["echo"][1])
        wait_until(lambda: len(requests.done) > 20, "requests are served", 60)
        with tunnel.create_connection(targets["echo"], 30.0) as held:
            links[1].signal(signal.SIGUSR1)
            wait_until(lambda: _roles(tunnel) == ["in use", "standby"], "the other one is used", 90)
            held.sendall(b"hello")
            assert held.recv(5) == b"hello"
            servers[0].process.kill()
            lost = time.monotonic()
            wait_until(lambda: _roles(tunnel) == ["down", "in use"], "the one that is left is used", 60)
            wait_until(lambda: requests.served_since(lost + 1) > 20, "requests are served", 60)
            held.sendall(b"again")
            assert held.recv(5) == b"again"
        requests.stop()
        assert requests.failed_since(lost + 1) == []
        assert len(requests.failed_since(0)) <= 4, requests.failed_since(0)


def nearest_yamux(site: Site) -> None:
    _nearest(site, "yamux")


def nearest_simple(site: Site) -> None:
    _nearest(site, "simple")


def alike(site: Site) -> None:
    """A bulk transfer fills the queue on the path to one of two servers that are alike, so that its round trip is several times
    the other's: new connections do not go there."""
    with (
        _two_far_servers(site, "yamux", (20, 20), 20) as (tunnel, _, _, targets),
        tunnel.create_connection(targets["http"], 30.0) as bulk,
    ):
        used = _roles(tunnel).index("in use")
        bulk.sendall(b"GET /bytes/200000000 HTTP/1.1\r\n\r\n")
        over = threading.Event()

        def read() -> None:
            while not over.is_set() and bulk.recv(1 << 16):
                pass

        reading = threading.Thread(target=read)
        reading.start()
        try:
            slow_since = math.inf

            def is_slow_for_long() -> bool:
                nonlocal slow_since
                assert _roles(tunnel)[used] == "in use"
                trips = {
                    session.upstream: session.rtt_ms or 0.0 for session in tunnel.snapshot().sessions if session.streams
                }
                if trips.get(used, 0.0) < 80:
                    slow_since = math.inf
                elif slow_since == math.inf:
                    slow_since = time.monotonic()
                return time.monotonic() - slow_since > routing.FASTER_FOR + 3

            wait_until(is_slow_for_long, "the round trip is long for a while", 60)
        finally:
            over.set()
            reading.join(20)


def _take(way: int) -> None:
    _ip("address", "add", f"10.0.{way}.2/24", "dev", f"way{way}")
    _ip("link", "set", f"way{way}", "up")
    _ip("route", "add", "default", "via", f"10.0.{way}.1")


SCENARIOS = {
    each.__name__: each
    for each in (nat64, other_route, other_route_simple, far_stream, far_probe, nearest_yamux, nearest_simple, alike)
}


def main(scenario: str, folder: Path) -> None:
    processes = Processes()
    site = Site.make(folder, processes, Authority(folder))
    try:
        SCENARIOS[scenario](site)
        print("done")
    except BaseException:
        print(processes.report())
        raise
    finally:
        processes.stop()
        site.resolver.stop()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
