"""What local programs do through the tunnel: `ech-workers server`, `ech-workers proxy`, a resolver and targets, as real processes."""

import asyncio
import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from harness import socks
from harness.authority import Authority
from harness.curl import KINDS, curl, fetch, fetch_sha256
from harness.ports import unused_port
from harness.processes import Processes, run
from harness.requirements import program
from harness.targets import BANNER, pattern, pattern_sha256
from harness.tunnel import ProxyProgram, ServerProgram, Site

MODES = {"yamux": "--yamux", "simple": "--no-yamux"}
GIB = 1 << 30


@dataclass
class Tunnel:
    site: Site
    server: ServerProgram
    proxy: ProxyProgram
    mode: str


@pytest.fixture(scope="module", params=MODES)
def tunnel(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, authority: Authority
) -> Iterator[Tunnel]:
    """Both ends with ECH, in each mode; shared by the tests of this file."""
    processes = Processes()
    site = Site.make(tmp_path_factory.mktemp("site"), processes, authority)
    server = site.server()
    proxy = site.proxy(server.port, MODES[request.param])
    before = request.session.testsfailed
    yield Tunnel(site, server, proxy, request.param)
    processes.stop()
    site.resolver.stop()
    if request.session.testsfailed > before:
        print(processes.report())


@pytest.mark.parametrize("kind", KINDS)
def test_curl_gets_a_page(tunnel: Tunnel, targets: dict[str, int], kind: str) -> None:
    size = 3_000_001
    assert fetch(tunnel.proxy, kind, f"http://localhost:{targets['http']}/bytes/{size}") == b"".join(pattern(size))


def test_plain_http_request_arrives_in_origin_form_without_the_proxys_headers(
    tunnel: Tunnel, targets: dict[str, int]
) -> None:
    authority = f"localhost:{targets['http']}"
    head = fetch(tunnel.proxy, "http", f"http://{authority}/request?x=1").decode().lower()
    assert head.startswith("get /request?x=1 http/1.1\r\n")
    assert f"\r\nhost: {authority}\r\n" in head
    assert "proxy-" not in head


def test_empty_page(tunnel: Tunnel, targets: dict[str, int]) -> None:
    assert fetch(tunnel.proxy, "socks5", f"http://127.0.0.1:{targets['http']}/bytes/0") == b""


@pytest.mark.parametrize("kind", ["socks5", "http-connect"])
def test_upload_arrives_whole(tunnel: Tunnel, targets: dict[str, int], tmp_path: Path, kind: str) -> None:
    size = 5_000_003
    file = tmp_path / "upload"
    file.write_bytes(b"".join(pattern(size)))
    sent = curl(tunnel.proxy, kind, "--upload-file", file, f"http://localhost:{targets['http']}/sink")
    assert json.loads(sent.stdout) == {"bytes": size, "sha256": pattern_sha256(size)}, sent.stderr


def test_server_that_speaks_first_is_heard(tunnel: Tunnel, targets: dict[str, int]) -> None:
    with socks.connect(tunnel.proxy.address, "localhost", targets["banner"]) as connection:
        assert socks.exactly(connection, len(BANNER)) == BANNER
        connection.sendall(b"hello")
        assert socks.exactly(connection, 5) == b"hello"


def test_bytes_come_as_they_are_sent_one_at_a_time(tunnel: Tunnel, targets: dict[str, int]) -> None:
    with socks.connect(tunnel.proxy.address, "localhost", targets["echo"]) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for number in range(200):
            connection.sendall(bytes([number]))
            assert socks.exactly(connection, 1) == bytes([number])


def test_the_word_close_in_the_data_is_data(tunnel: Tunnel, targets: dict[str, int]) -> None:
    with socks.connect(tunnel.proxy.address, "localhost", targets["echo"]) as connection:
        for _ in range(3):
            connection.sendall(b"CLOSE")
            assert socks.exactly(connection, 5) == b"CLOSE"


def test_answer_after_a_half_close_is_not_cut_off(tunnel: Tunnel, targets: dict[str, int]) -> None:
    """A program that sends its request and closes its side still gets all of a slow answer."""
    with socks.connect(tunnel.proxy.address, "localhost", targets["http"]) as connection:
        connection.sendall(b"GET /slow/20 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        connection.shutdown(socket.SHUT_WR)
        assert socks.until_end(connection).endswith(b"\r\n\r\n" + b"." * 20)


def test_targets_end_reaches_the_program(tunnel: Tunnel, targets: dict[str, int]) -> None:
    with socks.connect(tunnel.proxy.address, "localhost", targets["http"]) as connection:
        connection.sendall(b"GET /cut/100000 HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert socks.until_end(connection).endswith(b"".join(pattern(100000)))


def test_targets_reset_ends_the_connection(tunnel: Tunnel, targets: dict[str, int]) -> None:
    with socks.connect(tunnel.proxy.address, "localhost", targets["reset"]) as connection:
        connection.sendall(b"x")
        connection.settimeout(10)
        with contextlib.suppress(ConnectionResetError):
            assert socks.until_end(connection) == b""


def test_target_that_refuses_ends_the_connection_soon(tunnel: Tunnel) -> None:
    port = unused_port()
    started = time.monotonic()
    try:
        with socks.connect(tunnel.proxy.address, "127.0.0.1", port) as connection:
            connection.sendall(b"hello")
            assert socks.until_end(connection) == b""
    except (socks.ReplyError, ConnectionResetError):
        pass
    assert time.monotonic() - started < 20


def test_clients_that_go_away_free_the_target(tunnel: Tunnel, targets: dict[str, int]) -> None:
    """A program that closes while the target is silent does not leave the target's connection open for ever."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(10)
    with listener:
        connection = socks.connect(tunnel.proxy.address, "127.0.0.1", listener.getsockname()[1])
        connection.sendall(b"hello")
        accepted, _ = listener.accept()
        with accepted:
            accepted.settimeout(10)
            assert socks.exactly(accepted, 5) == b"hello"
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            connection.close()
            with contextlib.suppress(ConnectionResetError):
                assert accepted.recv(1) == b""


def test_git_clones_over_http(tunnel: Tunnel, targets: dict[str, int], files: Path, tmp_path: Path) -> None:
    git = program("git", "git")
    environment = {
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_SYSTEM": os.devnull,
        "GIT_AUTHOR_NAME": "a",
        "GIT_AUTHOR_EMAIL": "a@example.org",
        "GIT_COMMITTER_NAME": "a",
        "GIT_COMMITTER_EMAIL": "a@example.org",
        "NO_PROXY": "",
        "no_proxy": "",
    }

    def run_git(*arguments: str | Path) -> str:
        done = run(git, *arguments, env=environment, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    work, served, clone = tmp_path / "work", files / f"{tunnel.mode}.git", tmp_path / "clone"
    run_git("init", "--quiet", work)
    for number in range(20):
        (work / f"{number}.bin").write_bytes(os.urandom(50_000))
    run_git("-C", work, "add", ".")
    run_git("-C", work, "commit", "--quiet", "--message", "files")
    run_git("clone", "--quiet", "--bare", work, served)
    run_git("-C", served, "update-server-info")
    url = f"http://localhost:{targets['http']}/files/{served.name}"
    run_git("-c", f"http.proxy=socks5h://127.0.0.1:{tunnel.proxy.port}", "clone", "--quiet", url, clone)
    assert run_git("-C", clone, "rev-parse", "HEAD") == run_git("-C", work, "rev-parse", "HEAD")
    run_git("-C", clone, "fsck", "--full", "--strict")


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_gibibyte_download_has_the_same_sum(tunnel: Tunnel, targets: dict[str, int]) -> None:
    assert fetch_sha256(tunnel.proxy, "socks5", f"http://localhost:{targets['http']}/bytes/{GIB}") == (
        GIB,
        pattern_sha256(GIB),
    )


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_gibibyte_upload_has_the_same_sum(tunnel: Tunnel, targets: dict[str, int], tmp_path: Path) -> None:
    file = tmp_path / "upload"
    with file.open("wb") as out:
        out.writelines(pattern(GIB))
    sent = curl(
        tunnel.proxy, "http-connect", "--upload-file", file, f"http://localhost:{targets['http']}/sink", timeout=300
    )
    file.unlink()
    assert json.loads(sent.stdout) == {"bytes": GIB, "sha256": pattern_sha256(GIB)}, sent.stderr


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_thousand_connections_at_a_time(tunnel: Tunnel, targets: dict[str, int]) -> None:
    """All open before the first ends, each with its own bytes there and back."""
    count = 1000

    async def one(number: int, opened: "asyncio.Barrier", gate: asyncio.Semaphore) -> bool:
        # As many as a listen queue holds: the point is a thousand connections, not a thousand SYNs in one instant.
        async with gate:
            reader, writer = await asyncio.open_connection(*tunnel.proxy.address)
            writer.write(b"\x05\x01\x00")
            assert await reader.readexactly(2) == b"\x05\x00"
            writer.write(b"\x05\x01\x00\x01\x7f\x00\x00\x01" + targets["echo"].to_bytes(2, "big"))
            assert (await reader.readexactly(10))[1] == socks.OK
        message = number.to_bytes(4, "big") * 2500
        writer.write(message[:4])
        assert await reader.readexactly(4) == message[:4]
        await opened.wait()
        writer.write(message[4:])
        same = await reader.readexactly(len(message) - 4) == message[4:]
        writer.close()
        return same

    async def everyone() -> list[bool]:
        opened, gate = asyncio.Barrier(count), asyncio.Semaphore(100)
        async with asyncio.timeout(150):
            return await asyncio.gather(*(one(number, opened, gate) for number in range(count)))

    assert asyncio.run(everyone()) == [True] * count
    assert tunnel.proxy.process.running
    assert tunnel.server.process.running


def test_bulk_does_not_starve_a_small_request(tunnel: Tunnel, targets: dict[str, int]) -> None:
    """While one program downloads without end and one stops reading, others are served."""
    with (
        socks.connect(tunnel.proxy.address, "localhost", targets["http"]) as stuck,
        socks.connect(tunnel.proxy.address, "localhost", targets["echo"]) as small,
    ):
        stuck.sendall(f"GET /bytes/{GIB} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        socks.exactly(stuck, 100)
        small.settimeout(10)
        for _ in range(50):
            small.sendall(b"ping")
            assert socks.exactly(small, 4) == b"ping"
        assert fetch(tunnel.proxy, "socks5", f"http://localhost:{targets['http']}/bytes/2000000") == b"".join(
            pattern(2000000)
        )


def test_end_to_end_half_close(site: Site, targets: dict[str, int]) -> None:
    """Towards our own server a half-close is real in yamux mode: the target sees the end and answers after it."""
    proxy = site.proxy(site.server().port)
    with socks.connect(proxy.address, "localhost", targets["digest"]) as connection:
        for piece in pattern(3_000_000):
            connection.sendall(piece)
        connection.shutdown(socket.SHUT_WR)
        assert json.loads(socks.until_end(connection)) == {"bytes": 3_000_000, "sha256": pattern_sha256(3_000_000)}


def test_two_sessions_on_two_cores_carry_many_transfers(site: Site, targets: dict[str, int]) -> None:
    size, transfers = 20_000_000, 6
    server = site.server("--workers", "2")
    proxy = site.proxy(server.port, "--sessions", "2")
    threads = [path.read_text() for path in Path(f"/proc/{proxy.process.pid}/task").glob("*/comm")]
    assert sum(name.startswith("ech-client-") for name in threads) == min(2, os.cpu_count() or 1), threads
    url = f"http://localhost:{targets['http']}/bytes/{size}"
    with ThreadPoolExecutor(transfers) as pool:
        found = list(pool.map(lambda _: fetch_sha256(proxy, "socks5", url), range(transfers)))
    assert found == [(size, pattern_sha256(size))] * transfers
    server.process.stop()
    assert "so far: sessions 2, " in server.process.output


@pytest.mark.parametrize("mode", MODES)
def test_without_ech(site: Site, targets: dict[str, int], mode: str) -> None:
    server = site.server(ech=False)
    proxy = site.proxy(server.port, "--no-ech", MODES[mode])
    assert fetch(proxy, "socks5", f"http://localhost:{targets['http']}/bytes/1000") == b"".join(pattern(1000))


def test_ech_config_and_address_by_hand_need_no_resolver(site: Site, targets: dict[str, int]) -> None:
    site.resolver.stop()
    server = site.server(publish=False)
    proxy = site.proxy(server.port, "--ech-config", site.key.base64, "--server-ip", "127.0.0.1")
    assert fetch(proxy, "socks5", f"http://localhost:{targets['http']}/bytes/1000") == b"".join(pattern(1000))
    assert site.resolver.questions == []


def test_options_from_the_environment(site: Site, targets: dict[str, int], processes: Processes) -> None:
    server = site.server()
    words = [str(word) for word in site.proxy_arguments(server.port)]
    options = dict(zip(words[3::2], words[4::2], strict=True))
    environment = {
        f"ECH_WORKERS_{name.removeprefix('--').replace('-', '_').upper()}": value for name, value in options.items()
    }
    process = processes.start(*words[:3], env={**site.environment, **environment})
    port = int(process.wait_line(r"listening on \S*?:(\d+)\b").group(1))
    process.wait_line("session up")
    assert fetch(ProxyProgram(process, port), "http", f"http://localhost:{targets['http']}/bytes/10") == pattern(10)[-1]


@pytest.mark.parametrize("kind", ["socks5", "http-connect", "http"])
def test_local_password(site: Site, targets: dict[str, int], kind: str) -> None:
    proxy = site.proxy(site.server().port, "--username", "ann", "--password", "s3cret")
    url = f"http://localhost:{targets['http']}/bytes/10"
    assert curl(proxy, kind, "--proxy-user", "ann:s3cret", "--fail", url).returncode == 0
    for wrong in (["--proxy-user", "ann:other"], []):
        assert curl(proxy, kind, "--fail", *wrong, url).returncode != 0


def test_several_sessions_carry_connections(site: Site, targets: dict[str, int]) -> None:
    proxy = site.proxy(site.server().port, "--sessions", "3")
    for _ in range(6):
        assert fetch(proxy, "socks5", f"http://localhost:{targets['http']}/bytes/100000") == b"".join(pattern(100000))


def test_private_targets_are_refused_unless_allowed(site: Site, targets: dict[str, int], processes: Processes) -> None:
    arguments = [word for word in site.server().process.arguments if word != "--allow-private-targets"]
    process = processes.start(*arguments)
    port = int(process.wait_line(r"listening on \S*?:(\d+)\b").group(1))
    site.publish(port, site.key.base64)
    proxy = site.proxy(port)
    for host in ("127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]"):
        assert curl(proxy, "socks5", "--fail", f"http://{host}:{targets['http']}/bytes/10").returncode != 0, host
