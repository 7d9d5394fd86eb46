"""The server under clients that take what they can: whoever else uses it does not notice, and it comes back to where it was."""

import contextlib
import os
import resource
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness import socks
from harness.alone import MAY_UNSHARE, alone
from harness.hostile import DATA, FIN, RST, WS_PING, HostileClient, frame, opening
from harness.name_server import MAY_MOUNT, NameServer
from harness.processes import Processes, python_program
from harness.targets import pattern
from harness.tunnel import PUBLIC_NAME, ProxyProgram, Site
from harness.waiting import wait_until

TESTS = Path(__file__).resolve().parents[1]
MIB = 1 << 20
MB = 1_000_000


@pytest.fixture(autouse=True)
def many_descriptors() -> None:
    """The test opens thousands of connections itself."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@contextlib.contextmanager
def dead_port() -> Iterator[tuple[str, int]]:
    """An address where connections are never accepted nor refused: a listener whose queue is full."""
    with contextlib.ExitStack() as held:
        listener = held.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        while True:
            filler = held.enter_context(socket.socket())
            filler.settimeout(0.5)
            try:
                filler.connect(listener.getsockname())
            except TimeoutError:
                break
        yield listener.getsockname()


def works(proxy: ProxyProgram, targets: dict[str, int], host: str = "127.0.0.1") -> None:
    """Another user gets through."""
    with socks.connect(proxy.address, host, targets["http"], timeout=30) as connection:
        connection.sendall(b"GET /bytes/1000 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        assert socks.until_end(connection).partition(b"\r\n\r\n")[2] == b"".join(pattern(1000))


@pytest.mark.parametrize("half_closed", [False, True])
def test_streams_opened_and_reset_at_once_hold_nothing(site: Site, targets: dict[str, int], half_closed: bool) -> None:
    """3,000 streams to a target that does not answer, each reset behind its opening: no socket outlives its stream."""
    server = site.server("--max-streams", "64", "--connect-timeout", "300")
    proxy = site.proxy(server.port)
    works(proxy, targets)
    before = server.process.descriptors()
    with dead_port() as (host, port), HostileClient(site, server.port) as client:
        client.upgrade()
        for start in range(0, 3000, 300):
            streams = range(2 * start + 1, 2 * (start + 300), 2)
            client.message(
                b"".join(
                    opening(n, f"{host}:{port}")
                    + (frame(DATA, FIN, n, 0) if half_closed else b"")
                    + frame(DATA, RST, n, 0)
                    for n in streams
                )
            )
            assert server.process.descriptors() < before + 200
        works(proxy, targets)
        wait_until(lambda: server.process.descriptors() <= before + 2, "the end of the attempts")


def test_tiny_frames_leave_no_memory_behind(site: Site, targets: dict[str, int]) -> None:
    """100 sessions that each get 120 KiB of empty pongs at once: what was noted of so many frames is not kept."""
    server = site.server()
    with contextlib.ExitStack() as held:
        clients = [held.enter_context(HostileClient(site, server.port)).upgrade() for _ in range(100)]

        def round_trip() -> None:
            for client in clients:
                client.message(b"are you there?", WS_PING)
                client.receive_until(b"are you there?")

        for client in clients:
            client.message(opening(1, f"127.0.0.1:{targets['echo']}", b"hello"))
            client.receive_until(b"hello")
        round_trip()
        before = server.process.resident_kib()
        for _ in range(3):
            for client in clients:
                client.tls.sendall((b"\x8a\x80" + bytes(4)) * 20_000)
            round_trip()
        grown = (server.process.resident_kib() - before) * 1024
        assert grown < 16 * MB, f"{grown / MB:.0f} MB"


def test_many_attempts_of_one_client_leave_descriptors_to_others(site: Site, targets: dict[str, int]) -> None:
    """With 256 descriptors, one client that opens 1,000 streams to dead targets does not shut the server to others."""
    server = site.server("--connect-timeout", "300", prefix=["sh", "-c", 'ulimit -n 256; exec "$0" "$@"'])
    server.process.wait_line("allows this process 256 open files")
    proxy = site.proxy(server.port)
    with dead_port() as (host, port), HostileClient(site, server.port) as client:
        client.upgrade()
        client.message(b"".join(opening(n, f"{host}:{port}") for n in range(1, 2000, 2)))
        works(proxy, targets)
        works(site.proxy(server.port), targets)
    assert "Too many open files" not in server.process.output


@MAY_MOUNT
def test_names_that_are_never_answered_hold_up_nobody_else(site: Site, targets: dict[str, int]) -> None:
    """One client asks for 500 names whose name server is silent; another's name is looked up as ever."""
    with NameServer(site.folder, {"good.test": ["127.0.0.1"]}) as names:
        server = site.server("--connect-timeout", "300", prefix=names.prefix)
        proxy = site.proxy(server.port)
        with HostileClient(site, server.port) as client:
            client.upgrade()
            client.message(b"".join(opening(n, f"name{n}.dead:80") for n in range(1, 1000, 2)))
            wait_until(lambda: sum(name.endswith("dead") for name in names.questions) >= 40, "questions of the client")
            works(proxy, targets, "good.test")
            assert server.process.descriptors() < 600


@MAY_MOUNT
def test_a_dead_first_address_does_not_keep_a_target_away(site: Site, targets: dict[str, int]) -> None:
    """A name with an address that never answers before the right one."""
    with contextlib.ExitStack() as held:
        dead = held.enter_context(socket.socket())
        dead.bind(("127.0.0.77", targets["http"]))
        dead.listen(0)
        full = False
        while not full:
            filler = held.enter_context(socket.socket())
            filler.settimeout(0.5)
            try:
                filler.connect(dead.getsockname())
            except TimeoutError:
                full = True
        hosts = "127.0.0.77 two.test\n127.0.0.1 two.test\n"
        names = held.enter_context(NameServer(site.folder, {}, hosts))
        proxy = site.proxy(site.server("--connect-timeout", "300", prefix=names.prefix).port)
        works(proxy, targets, "two.test")


@pytest.mark.timeout(180)
def test_idle_connections_of_one_address_keep_no_other_out(site: Site, targets: dict[str, int]) -> None:
    """10,000 connections that never begin a handshake."""
    server = site.server()
    with contextlib.ExitStack() as held:
        count = min(10_000, resource.getrlimit(resource.RLIMIT_NOFILE)[0] - 500)
        for _ in range(count):
            held.enter_context(
                socket.create_connection(("127.0.0.1", server.port), timeout=30, source_address=("127.0.0.2", 0))
            )
        works(site.proxy(server.port), targets)
        assert server.process.descriptors() < 1500


@pytest.mark.timeout(180)
def test_visitors_that_do_not_read_take_no_place_and_little_memory(site: Site, targets: dict[str, int]) -> None:
    """40 visitors of a page of 4 MiB that is never read: sessions have their own places, and the visits end."""
    page = site.folder / "page.html"
    page.write_bytes(b"x" * (4 * MIB))
    server = site.server("--decoy", page, "--max-sessions", "20")
    works(site.proxy(server.port), targets)
    before = (server.process.resident_kib(), server.process.descriptors())
    with contextlib.ExitStack() as held:
        for _ in range(40):
            visitor = held.enter_context(HostileClient(site, server.port))
            visitor.tls.sendall(f"GET / HTTP/1.1\r\nHost: {PUBLIC_NAME}\r\n\r\n".encode())
            visitor.head()
        works(site.proxy(server.port), targets)
        assert server.process.resident_kib() - before[0] < 16 * 1024
        wait_until(lambda: server.process.descriptors() <= before[1] + 10, "the end of the visits", 90)


@MAY_UNSHARE
@pytest.mark.timeout(200)
def test_data_for_a_target_that_does_not_read_is_bounded(site: Site, processes: Processes) -> None:
    """One client fills 1,000 streams to targets that read nothing: the server's memory grows by 64 MB at most, and others go
    on."""

    def body() -> None:
        with contextlib.ExitStack() as held:
            target = held.enter_context(socket.socket())
            # What the kernel holds for the target is not the server's.
            target.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            target.bind(("127.0.0.1", 0))
            target.listen(2048)
            served = processes.start(
                *python_program("harness.targets"), str(site.folder), env={"PYTHONPATH": str(TESTS)}
            )
            targets = served.wait_event("listening")
            server = site.server(publish=False)
            proxy = site.proxy(server.port, "--server-ip", "127.0.0.1", "--ech-config", site.key.base64)
            works(proxy, targets)
            before = server.process.resident_kib()
            client = held.enter_context(HostileClient(site, server.port)).upgrade()
            peak = before
            sent = [0]

            def send() -> None:
                block = os.urandom(16_000)
                with contextlib.suppress(OSError):
                    for number in range(1, 2000, 2):
                        client.message(opening(number, f"127.0.0.1:{target.getsockname()[1]}"))
                    for _ in range(16):
                        for number in range(1, 2000, 2):
                            client.message(frame(DATA, 0, number, len(block), block))
                            sent[0] += len(block)

            sender = threading.Thread(target=send, daemon=True)
            sender.start()
            end = time.monotonic() + 20
            while time.monotonic() < end and sender.is_alive():
                peak = max(peak, server.process.resident_kib())
                time.sleep(0.05)
            works(proxy, targets)
            peak = max(peak, server.process.resident_kib())
            # Otherwise the kernel has taken it all, and the test has measured nothing.
            assert sent[0] < 200 * MB
            assert (peak - before) * 1024 <= 64 * MB, f"{(peak - before) * 1024 / MB:.0f} MB"

    alone(body)


@pytest.mark.parametrize("mode", ["--yamux", "--no-yamux"])
def test_a_stop_does_not_wait_for_those_who_say_nothing(site: Site, targets: dict[str, int], mode: str) -> None:
    """Clients between their upgrade and their first message, and a proxy that is idle: SIGTERM ends the server at once."""
    server = site.server("--drain", "300")
    proxy = site.proxy(server.port, mode)
    works(proxy, targets)
    with HostileClient(site, server.port) as silent, HostileClient(site, server.port) as begun:
        silent.upgrade()
        begun.upgrade()
        # A part of a first message is not one.
        begun.tls.sendall(b"\x82")
        visitor = HostileClient(site, server.port)
        server.process.signal(signal.SIGTERM)
        assert server.process.wait(15) == 0, server.process.output
        visitor.close()
        # The client is told: a close with 1001, not a cut.
        assert socks.exactly(silent.tls, 4) == b"\x88\x02\x03\xe9"


def test_a_stop_says_what_it_waits_for(site: Site, targets: dict[str, int]) -> None:
    """The line counts what is waited for, in either mode."""
    server = site.server("--drain", "300")
    multiplexed, simple = site.proxy(server.port), site.proxy(server.port, "--no-yamux")
    with (
        socks.connect(multiplexed.address, "127.0.0.1", targets["echo"]) as first,
        socks.connect(multiplexed.address, "127.0.0.1", targets["echo"]) as second,
        socks.connect(simple.address, "127.0.0.1", targets["echo"]) as third,
    ):
        for connection in (first, second, third):
            connection.sendall(b"a")
            assert socks.exactly(connection, 1) == b"a"
        server.process.signal(signal.SIGTERM)
        server.process.wait_line(r"draining.*sessions: 2, streams: 3")
        for connection in (first, second, third):
            connection.sendall(b"b")
            assert socks.exactly(connection, 1) == b"b"
    assert server.process.wait(15) == 0, server.process.output
