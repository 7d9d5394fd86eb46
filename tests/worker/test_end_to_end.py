"""Local programs through our client, TLS with ECH, and the Worker: as users have it."""

import contextlib
import hashlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from ech_workers import Tunnel
from ech_workers.config import ClientConfig
from ech_workers.options import several
from harness import socks
from harness.authority import Authority
from harness.curl import curl, fetch_sha256
from harness.json_resolver import JsonResolver
from harness.ports import unused_port
from harness.processes import run
from harness.targets import BANNER, pattern, pattern_sha256
from harness.tunnel import PATH, SERVER_NAME, TOKEN, ProxyProgram, Site
from harness.waiting import wait_until
from harness.worker import DENIED, PLATFORM_ADDRESS, Deployment, Worker

MODES = {"simple": "--no-yamux", "multiplexed": "--yamux"}
TIMEOUT = 60.0
STOPPED = 20.0
# WORKER_QUIET_SECONDS=300 is the full length.
QUIET = float(os.environ.get("WORKER_QUIET_SECONDS", "20"))


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest) -> str:
    named: str = request.param
    return named


def start(deployment: Deployment, mode: str, denied: Sequence[str] = DENIED, **variables: Any) -> Worker:
    """variables: strings."""
    return deployment.start(denied=denied, MULTIPLEXED="on" if mode == "multiplexed" else "", **variables)


def proxy_for(
    site: Site, worker: Worker, mode: str, *options: str, token: str = TOKEN, wait: bool = True
) -> ProxyProgram:
    words = (MODES[mode], "--reply", "confirmed", *options)
    return site.proxy(worker.tls_port, *words, path=worker.entry_path, token=token, wait=wait)


@pytest.mark.parametrize("version", ["new", "old"])
def test_fifty_megabytes_each_way_arrive_unchanged(
    site: Site, deployment: Deployment, targets: dict[str, int], mode: str, tmp_path: Path
) -> None:
    size = 50_000_000
    proxy = proxy_for(site, start(deployment, mode), mode)
    http = f"http://localhost:{targets['http']}"
    assert fetch_sha256(proxy, "socks5", f"{http}/bytes/{size}") == (size, pattern_sha256(size))
    upload = tmp_path / "upload"
    with upload.open("wb") as file:
        file.writelines(pattern(size))
    done = curl(proxy, "socks5", "--upload-file", upload, f"{http}/sink")
    assert json.loads(done.stdout) == {"bytes": size, "sha256": pattern_sha256(size)}


@pytest.mark.parametrize("version", ["new", "old"])
def test_fifty_connections_at_a_time(site: Site, deployment: Deployment, targets: dict[str, int], mode: str) -> None:
    proxy = proxy_for(site, start(deployment, mode, SOCKET_LIMIT="50"), mode)
    size = 300_007

    def exchange(_: int) -> bool:
        with socks.connect(proxy.address, "localhost", targets["http"], TIMEOUT) as connection:
            connection.sendall(f"GET /bytes/{size} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
            body = socks.until_end(connection).partition(b"\r\n\r\n")[2]
        return hashlib.sha256(body).hexdigest() == pattern_sha256(size)

    with ThreadPoolExecutor(50) as pool:
        assert all(pool.map(exchange, range(50)))


def test_a_wrong_token_is_named(site: Site, deployment: Deployment) -> None:
    proxy = proxy_for(site, start(deployment, "simple"), "simple", token="another-token", wait=False)
    proxy.process.wait_line("the server does not accept this token")


def reply_of(proxy: ProxyProgram, host: str, port: int) -> int:
    """The SOCKS5 reply."""
    try:
        socks.connect(proxy.address, host, port, TIMEOUT).close()
    except socks.ReplyError as error:
        return error.reply
    return socks.OK


def test_failures_of_targets_have_true_codes(
    site: Site, deployment: Deployment, lookups: JsonResolver, mode: str
) -> None:
    lookups.addresses["on-platform.test"] = [PLATFORM_ADDRESS]
    proxy = proxy_for(site, start(deployment, mode), mode)
    # RFC 1928 section 6; a name that does not exist has no code of its own there.
    assert reply_of(proxy, "localhost", unused_port()) == 5
    assert reply_of(proxy, "no-such-name.invalid", 80) == 4
    assert reply_of(proxy, "localhost", 25) == 2
    assert reply_of(proxy, "on-platform.test", 443) in (1, 4)


@pytest.mark.parametrize("version", ["new", "new-as-of-old", "old"])
def test_ends_are_carried_in_both_directions(
    site: Site, deployment: Deployment, targets: dict[str, int], mode: str
) -> None:
    """A target that speaks first and one that answers only after our end."""
    proxy = proxy_for(site, start(deployment, mode), mode)
    with socks.connect(proxy.address, "localhost", targets["banner"], TIMEOUT) as connection:
        assert socks.exactly(connection, len(BANNER)) == BANNER
        connection.sendall(b"hello")
        connection.shutdown(socket.SHUT_WR)
        assert socks.until_end(connection) == b"hello"
    with socks.connect(proxy.address, "localhost", targets["digest"], TIMEOUT) as connection:
        for piece in pattern(3_000_001):
            connection.sendall(piece)
        connection.shutdown(socket.SHUT_WR)
        assert json.loads(socks.until_end(connection)) == {"bytes": 3_000_001, "sha256": pattern_sha256(3_000_001)}


@pytest.mark.parametrize("version", ["new", "old"])
def test_a_target_that_closes_first_ends_the_connection_after_its_last_byte(
    site: Site, deployment: Deployment, targets: dict[str, int], mode: str
) -> None:
    proxy = proxy_for(site, start(deployment, mode), mode)
    request = b"GET /bytes/1000003 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    for _ in range(5):
        with socks.connect(proxy.address, "localhost", targets["http"], TIMEOUT) as connection:
            connection.sendall(request)
            body = socks.until_end(connection).partition(b"\r\n\r\n")[2]
        assert hashlib.sha256(body).hexdigest() == pattern_sha256(1_000_003)


class _Target:
    """A target that does what its subclass says with each connection."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._run, args=(connection,), daemon=True).start()

    def _run(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            self.serve(connection)

    def serve(self, connection: socket.socket) -> None:
        raise NotImplementedError

    def close(self) -> None:
        self._listener.close()


class _Stopped(_Target):
    """Takes nothing for a while, or until it is told to, then `size` bytes, and answers with their number and sum."""

    def __init__(self, seconds: float, size: int) -> None:
        self._seconds = seconds
        self._size = size
        self.go = threading.Event()
        super().__init__()

    def serve(self, connection: socket.socket) -> None:
        self.go.wait(self._seconds)
        digest, size = hashlib.sha256(), 0
        while size < self._size and (piece := connection.recv(1 << 20)):
            digest.update(piece)
            size += len(piece)
        connection.sendall(json.dumps({"bytes": size, "sha256": digest.hexdigest()}).encode())


class _Source(_Target):
    """Sends `size` bytes of the pattern; `sent` says how many the system took."""

    def __init__(self, size: int) -> None:
        self.sent = 0
        self._size = size
        super().__init__()

    def serve(self, connection: socket.socket) -> None:
        for piece in pattern(self._size):
            for start in range(0, len(piece), 1 << 16):
                connection.sendall(piece[start : start + (1 << 16)])
                self.sent += len(piece[start : start + (1 << 16)])


def wait_until_still(count: Callable[[], int]) -> int:
    """Waits until this has not changed for two seconds; what it is then."""
    last, since = count(), time.monotonic()

    def is_still() -> bool:
        nonlocal last, since
        if (now := count()) != last:
            last, since = now, time.monotonic()
        return time.monotonic() - since > 2

    wait_until(is_still, "nothing moves any more", TIMEOUT)
    return last


@pytest.mark.parametrize("version", ["new", "new-as-of-old", "old"])
def test_a_reader_that_stops_leaves_its_data_at_the_target(site: Site, deployment: Deployment, mode: str) -> None:
    """The runtime holds little of it, and afterwards all of it arrives."""
    size, read = 160_000_000, 1_000_000
    source = _Source(size)
    worker = start(deployment, mode)
    proxy = proxy_for(site, worker, mode)
    before = worker.process.resident_kib()
    try:
        with socks.connect(proxy.address, "localhost", source.port, TIMEOUT) as connection:
            digest = hashlib.sha256(socks.exactly(connection, read))
            # More than that is what the kernel holds on four connections.
            assert wait_until_still(lambda: source.sent) < 100_000_000
            assert worker.process.resident_kib() - before < 64 * 1024
            while piece := connection.recv(1 << 20):
                digest.update(piece)
                read += len(piece)
        assert (read, digest.hexdigest()) == (size, pattern_sha256(size))
    finally:
        source.close()


@pytest.mark.parametrize("version", ["new", "new-as-of-old", "old"])
def test_an_upload_waits_for_a_target_that_stops(site: Site, deployment: Deployment, mode: str) -> None:
    """It is much larger than what the Worker would hold for a client that cannot wait."""
    size, sent = 120_000_000, 0
    target = _Stopped(TIMEOUT, size)
    proxy = proxy_for(site, start(deployment, mode, UPLOAD_MIB="8"), mode)
    try:
        with socks.connect(proxy.address, "localhost", target.port, TIMEOUT) as connection:

            def upload() -> None:
                nonlocal sent
                for piece in pattern(size):
                    connection.sendall(piece)
                    sent += len(piece)

            with ThreadPoolExecutor(1) as pool:
                uploading = pool.submit(upload)
                assert wait_until_still(lambda: sent) < size
                target.go.set()
                uploading.result()
            told = json.loads(socks.until_end(connection))
        assert told == {"bytes": size, "sha256": pattern_sha256(size)}
    finally:
        target.close()


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("version", ["new", "old"])
def test_connections_survive_quiet_and_ends_that_stop(
    site: Site, deployment: Deployment, targets: dict[str, int]
) -> None:
    """All at the same time, in both modes: nothing said (20 s; WORKER_QUIET_SECONDS=300 for five minutes), a reader that stops for
    20 s in the middle of 50 MB, and a target that takes nothing of 20 MB for 20 s."""
    size, upload = 50_000_000, 20_000_000
    stopped = _Stopped(STOPPED, upload)

    def quiet(proxy: ProxyProgram) -> bool:
        with socks.connect(proxy.address, "localhost", targets["echo"], TIMEOUT + QUIET) as connection:
            time.sleep(QUIET)
            connection.sendall(b"still there?")
            return socks.exactly(connection, 12) == b"still there?"

    def reader_that_stops(proxy: ProxyProgram) -> bool:
        with socks.connect(proxy.address, "localhost", targets["http"], TIMEOUT) as connection:
            connection.sendall(f"GET /bytes/{size} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
            begun = socks.exactly(connection, 1_000_000)
            time.sleep(STOPPED)
            body = (begun + socks.until_end(connection)).partition(b"\r\n\r\n")[2]
            return hashlib.sha256(body).hexdigest() == pattern_sha256(size)

    def target_that_stops(proxy: ProxyProgram) -> bool:
        with socks.connect(proxy.address, "localhost", stopped.port, TIMEOUT) as connection:
            for piece in pattern(upload):
                connection.sendall(piece)
            told = json.loads(socks.until_end(connection))
            return bool(told == {"bytes": upload, "sha256": pattern_sha256(upload)})

    tasks: list[Callable[[ProxyProgram], bool]] = [quiet, reader_that_stops, target_that_stops]
    try:
        with ThreadPoolExecutor(6) as pool:
            running: dict[tuple[str, str], Future[bool]] = {}
            for mode in MODES:
                proxy = proxy_for(site, start(deployment, mode), mode)
                running |= {(mode, task.__name__): pool.submit(task, proxy) for task in tasks}
            assert {name: future.result() for name, future in running.items()} == dict.fromkeys(running, True)
    finally:
        stopped.close()


def test_a_runtime_that_is_stopped_and_started_is_found_again(
    site: Site, deployment: Deployment, targets: dict[str, int], mode: str
) -> None:
    """An update of the platform: what is open ends, and later connections work."""
    worker = start(deployment, mode)
    proxy = proxy_for(site, worker, mode)
    with socks.connect(proxy.address, "localhost", targets["http"], TIMEOUT) as connection:
        connection.sendall(b"GET /slow/10000 HTTP/1.1\r\nHost: x\r\n\r\n")
        socks.exactly(connection, 100)
        worker.process.kill()
        with contextlib.suppress(ConnectionResetError):
            assert len(socks.until_end(connection)) < 10_000
    again = "on" if mode == "multiplexed" else ""
    successor = deployment.start(tls=False, listen=f"127.0.0.1:{worker.port}", MULTIPLEXED=again)

    def works() -> bool:
        done = curl(proxy, "socks5", f"http://localhost:{targets['http']}/bytes/1000", timeout=5)
        return done.returncode == 0

    wait_until(works, "the Worker is in use again", TIMEOUT)
    # It would wait for the client.
    successor.process.kill()


# Stand for the platform's own addresses in the tests of the relay: all targets are there.
OUT_OF_REACH = ("127.0.0.1/32", "::1/128")


@pytest.mark.parametrize("version", ["new", "old"])
@pytest.mark.parametrize("relayed_by", ["server", "worker"])
def test_a_relay_reaches_what_the_platform_does_not(
    site: Site,
    deployment: Deployment,
    targets: dict[str, int],
    lookups: JsonResolver,
    authority: Authority,
    relayed_by: str,
    mode: str,
) -> None:
    """By name and by address; the relay is our server, or another Worker elsewhere."""
    lookups.addresses["localhost"] = ["127.0.0.1"]
    if relayed_by == "server":
        server = site.server(listen="127.0.0.2:0", certificate=authority.issue("127.0.0.2"), publish=False)
        relay, token = f"wss://127.0.0.2:{server.port}{PATH}", TOKEN
    else:
        other = deployment.start(tls=False, listen="127.0.0.2:0")
        relay, token = f"ws://127.0.0.2:{other.port}/{TOKEN}", ""
    worker = start(
        deployment, mode, denied=OUT_OF_REACH, PLATFORM_PREFIXES=",".join(OUT_OF_REACH), RELAY=relay, RELAY_TOKEN=token
    )
    proxy = proxy_for(site, worker, mode)
    for host in ("127.0.0.1", "localhost", "localhost"):
        with socks.connect(proxy.address, host, targets["digest"], TIMEOUT) as connection:
            for piece in pattern(3_000_001):
                connection.sendall(piece)
            connection.shutdown(socket.SHUT_WR)
            told = json.loads(socks.until_end(connection))
        assert told == {"bytes": 3_000_001, "sha256": pattern_sha256(3_000_001)}
        url = f"http://{host}:{targets['http']}/bytes/5000011"
        assert fetch_sha256(proxy, "socks5", url) == (5_000_011, pattern_sha256(5_000_011))
    assert reply_of(proxy, "127.0.0.1", unused_port()) == 5
    # Once a name is known to be there, nobody is asked again.
    assert len(lookups.questions) == 2


def test_without_a_relay_the_message_says_what_would_help(
    site: Site, deployment: Deployment, targets: dict[str, int], lookups: JsonResolver, mode: str
) -> None:
    lookups.addresses["localhost"] = ["127.0.0.1"]
    worker = start(deployment, mode, denied=OUT_OF_REACH, PLATFORM_PREFIXES=",".join(OUT_OF_REACH))
    proxy = proxy_for(site, worker, mode, "--log-level", "debug")
    curl(proxy, "http", f"http://localhost:{targets['http']}/")
    proxy.process.wait_line(
        "on the platform's own addresses, which a Worker cannot reach: give it a relay, or use another server"
    )


@pytest.mark.parametrize("reply", ["optimistic", "confirmed"])
def test_a_target_on_the_platforms_addresses_is_reached_by_the_next_server(
    site: Site, deployment: Deployment, targets: dict[str, int], lookups: JsonResolver, mode: str, reply: str
) -> None:
    lookups.addresses["localhost"] = ["127.0.0.1"]
    worker = start(deployment, mode, denied=OUT_OF_REACH, PLATFORM_PREFIXES=",".join(OUT_OF_REACH))
    other = site.server()
    word = "no-yamux" if mode == "simple" else "yamux"
    words = (
        f"{SERVER_NAME}:{worker.tls_port}{worker.entry_path},token={TOKEN},{word}",
        f"{SERVER_NAME}:{other.port}{PATH},token={TOKEN},priority=1",
    )
    tables = [{name: given.value for name, given in several.read(text)[0].items()} for text in words]
    options = {"doh_server": site.resolver.url, "doh_ip": "127.0.0.1", "cache_dir": "", "reply": reply}
    config = ClientConfig.of({**options, "ca_file": site.authority.path, "listen": "127.0.0.1:0"}, tables)
    with Tunnel.from_config(config) as tunnel:
        roles = ["in use", "standby"]
        wait_until(lambda: [each.role for each in tunnel.status().upstreams] == roles, "the Worker is used", TIMEOUT)
        with socks.connect(tunnel.addresses[0], "localhost", targets["digest"], TIMEOUT) as connection:
            for piece in pattern(200_003):
                connection.sendall(piece)
            connection.shutdown(socket.SHUT_WR)
            told = json.loads(socks.until_end(connection))
        assert told == {"bytes": 200_003, "sha256": pattern_sha256(200_003)}
        wait_until(lambda: tunnel.status().upstreams[0].unreached == 1, "it is counted", TIMEOUT)
        assert tunnel.status().upstreams[0].unreached_why == "they are on its platform's own addresses"


@pytest.mark.parametrize("version", ["new"])
def test_streams_beyond_the_socket_limit_go_to_other_sessions(
    site: Site, deployment: Deployment, targets: dict[str, int]
) -> None:
    """Twelve connections that stay open, with six sockets for each WebSocket and two sessions."""
    proxy = proxy_for(site, start(deployment, "multiplexed"), "multiplexed", "--sessions", "2")
    with contextlib.ExitStack() as held:
        opened = [
            held.enter_context(socks.connect(proxy.address, "localhost", targets["echo"], TIMEOUT)) for _ in range(12)
        ]
        for number, connection in enumerate(opened):
            connection.sendall(bytes([number]))
            assert socks.exactly(connection, 1) == bytes([number])


def test_the_deployed_client_works_unchanged(
    site: Site, deployment: Deployment, targets: dict[str, int], go_peers: dict[str, Path], mode: str
) -> None:
    worker = start(deployment, mode, SOCKET_LIMIT="8")
    done = run(
        go_peers["deployed_client"],
        *("-server", f"127.0.0.1:{worker.tls_port}", "-server-name", SERVER_NAME, "-token", TOKEN),
        *("-path", worker.entry_path, "-ca", site.authority.path, "-ech", site.key.base64),
        *("-mode", "yamux" if mode == "multiplexed" else "simple", "-streams", "8"),
        *("-echo", f"127.0.0.1:{targets['echo']}", "-size", "2000003"),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert [event["equal"] for event in events if event["event"] == "echoed"] == [True] * 8
    assert {event["ech"] for event in events if event["event"] == "handshake"} == {True}
