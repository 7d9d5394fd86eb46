"""The tunnel as an object, blocking and for asyncio, against a real server on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import socket
import threading
from typing import TYPE_CHECKING, Any

import pytest

from ech_workers import (
    CertificateError,
    ConfigError,
    EngineClosed,
    ListenError,
    TargetError,
    TokenError,
    Tunnel,
    TunnelError,
    _native,
    aio,
)
from ech_workers.demo import SAMPLE, Demo, sample
from harness.ports import unused_port
from harness.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def demo() -> Iterator[Demo]:
    with Demo() as running:
        yield running


@pytest.fixture(scope="module")
def options(demo: Demo) -> dict[str, Any]:
    """What a program gives to reach the server."""
    return {
        "server": f"hidden.test:{demo.server.address[1]}/ws",
        "token": demo.token,
        "doh_server": demo.resolver_url,
        "doh_ip": "127.0.0.1",
        "ca_file": demo.ca_file,
        "cache_dir": "",
    }


@pytest.fixture(scope="module")
def tunnel(options: dict[str, Any]) -> Iterator[Tunnel]:
    with Tunnel(**options) as running:
        yield running


def request(connection: socket.socket, path: str) -> bytes:
    connection.sendall(f"GET {path} HTTP/1.1\r\nHost: target\r\nConnection: close\r\n\r\n".encode())
    received = b""
    while data := connection.recv(65536):
        received += data
    head, _, body = received.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 "), head
    return body


def test_a_connection_reaches_the_target(demo: Demo, tunnel: Tunnel) -> None:
    with tunnel.create_connection(demo.target_address, timeout=10) as connection:
        assert connection.gettimeout() == 10
        assert connection.getpeername() == demo.target_address
        assert request(connection, f"/bytes/{SAMPLE}") == sample(SAMPLE)


@pytest.mark.parametrize("yamux", [True, False])
def test_both_modes(demo: Demo, options: dict[str, Any], yamux: bool) -> None:
    with (
        Tunnel(**options, yamux=yamux) as tunnel,
        tunnel.create_connection(demo.target_address, timeout=10) as connection,
    ):
        assert request(connection, "/bytes/100000") == sample(100000)


def test_the_standard_library_takes_it_for_a_tcp_socket(demo: Demo, tunnel: Tunnel) -> None:
    client = http.client.HTTPConnection(*demo.target_address, timeout=10)
    client._create_connection = lambda address, timeout, source=None: tunnel.create_connection(address, timeout)  # type: ignore[attr-defined]
    for _ in range(2):  # kept alive
        client.request("GET", "/bytes/1000")
        assert client.getresponse().read() == sample(1000)
    client.close()


def test_half_close_is_carried_over(tunnel: Tunnel) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(10)
        with tunnel.create_connection(listener.getsockname(), timeout=10) as connection:
            connection.sendall(b"question")
            connection.shutdown(socket.SHUT_WR)
            target, _ = listener.accept()
            with target:
                target.settimeout(10)
                received = b""
                while data := target.recv(100):
                    received += data
                assert received == b"question"
                target.sendall(b"answer after the end")
            received = b""
            while data := connection.recv(100):
                received += data
            assert received == b"answer after the end"


def test_many_threads_at_once(demo: Demo, tunnel: Tunnel) -> None:
    failed: list[BaseException] = []

    def fetch() -> None:
        try:
            with tunnel.create_connection(demo.target_address, timeout=20) as connection:
                assert request(connection, "/bytes/50000") == sample(50000)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=fetch) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []


def test_a_target_that_refuses_is_said_so(tunnel: Tunnel) -> None:
    address = ("127.0.0.1", unused_port())
    with pytest.raises(TargetError) as caught:
        tunnel.create_connection(address, timeout=10)
    assert caught.value.code == "target-refused"


@pytest.mark.parametrize("address", [("two words", 80), ("", 80), ("a.test", 0)])
def test_a_target_that_cannot_be_is_refused(tunnel: Tunnel, address: tuple[str, int]) -> None:
    with pytest.raises(TargetError) as caught:
        tunnel.create_connection(address)
    assert caught.value.exit_code == 11


def test_a_port_can_be_opened_later(demo: Demo, tunnel: Tunnel) -> None:
    host, port = tunnel.listen("127.0.0.1")
    assert (host, port) in tunnel.addresses
    client = http.client.HTTPConnection(host, port, timeout=10)
    client.request("GET", f"{demo.target_url}bytes/10")
    assert client.getresponse().read() == sample(10)
    client.close()
    with pytest.raises(ListenError) as caught:
        tunnel.listen(host, port)
    assert caught.value.code == "listen-in-use"


def test_status_and_counters(demo: Demo, tunnel: Tunnel) -> None:
    status = tunnel.status()
    assert status.phase == "up"
    assert status.cause is None
    assert status.ech is not None
    assert status.ech.public_name == "public.test"
    assert {session.ech for session in status.sessions} == {"accepted"}
    before = tunnel.snapshot()
    with tunnel.create_connection(demo.target_address, timeout=10) as connection:
        request(connection, "/bytes/10000")
    # The driver adds up at the end of its turn, when the bytes may have been read here already.
    wait_until(lambda: tunnel.snapshot().bytes_down - before.bytes_down >= 10000, "they are counted")
    opened = [sum(session.streams_total for session in seen.sessions) for seen in (before, tunnel.snapshot())]
    assert opened[1] > opened[0]


def test_entering_says_why_there_is_no_session(options: dict[str, Any]) -> None:
    with pytest.raises(TokenError, match="token"), Tunnel(**{**options, "token": "wrong"}):
        pass


def test_an_ech_configuration_of_another_server_is_the_first_suspect(options: dict[str, Any]) -> None:
    _, configs = _native.generate_ech_key(1, "elsewhere.test")
    with pytest.raises(CertificateError, match=r"ECH was rejected.*may be another server's") as caught:
        Tunnel(**options, ech_config=configs).__enter__()
    assert caught.value.code == "certificate-name"


def test_a_wrong_option_is_said_before_anything_starts() -> None:
    with pytest.raises(ConfigError):
        Tunnel("192.0.2.1/ws")


def test_a_certificate_file_of_noise_is_a_clear_error(options: dict[str, Any], tmp_path: Any) -> None:
    file = tmp_path / "ca.pem"
    file.write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    with pytest.raises(ConfigError) as caught, Tunnel(**{**options, "ca_file": file}):
        pass
    assert caught.value.option == "--ca-file"


def test_after_the_end_everything_says_closed(demo: Demo, options: dict[str, Any]) -> None:
    tunnel = Tunnel(**options)
    with pytest.raises(EngineClosed):
        tunnel.create_connection(demo.target_address)
    with tunnel:
        connection = tunnel.create_connection(demo.target_address, timeout=10)
    with connection, contextlib.suppress(ConnectionError):
        # A reset, or the end, but no hanging.
        connection.sendall(b"GET / HTTP/1.1\r\n\r\n")
        while connection.recv(100):
            pass
    for use in (tunnel.status, tunnel.snapshot, tunnel.start, lambda: tunnel.create_connection(demo.target_address)):
        with pytest.raises(EngineClosed):
            use()
    tunnel.close()


def test_the_port_of_a_tunnel_that_ended_is_free_again(options: dict[str, Any]) -> None:
    with Tunnel(**options, listen="0") as first:
        address = first.addresses[0]
    with Tunnel(**options, listen=f"{address[0]}:{address[1]}") as second:
        assert second.addresses == (address,)


def health(address: tuple[str, int]) -> tuple[int, bytes]:
    client = http.client.HTTPConnection(*address, timeout=10)
    with contextlib.closing(client):
        client.request("GET", "/healthz")
        answer = client.getresponse()
        return answer.status, answer.read()


def test_a_tunnel_has_a_status_port_if_it_is_asked_for(options: dict[str, Any], tunnel: Tunnel) -> None:
    assert tunnel.status_addresses == ()
    with Tunnel(**options, status_listen="0") as watched:
        (address,) = watched.status_addresses
        assert health(address) == (200, b"ok\n")
    with pytest.raises(ConnectionRefusedError):
        health(address)
    with Tunnel(**options, status_listen=f"{address[0]}:{address[1]}") as again:
        assert again.status_addresses == (address,)


def test_a_status_port_in_use_leaves_nothing_open(options: dict[str, Any]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        free_address = free.getsockname()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        tunnel = Tunnel(**options, listen=str(free_address[1]), status_listen=str(taken.getsockname()[1]))
        with pytest.raises(ListenError, match="--status-listen"):
            tunnel.start()
        assert tunnel.addresses == ()
        socket.create_server(free_address).close()
        tunnel.close()


def test_stream_sockets_accept_tcp_options_and_name_their_target(demo: Demo, tunnel: Tunnel) -> None:
    with tunnel.create_connection(demo.target_address, timeout=10) as stream:
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
        assert stream.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 0
        assert stream.getpeername() == demo.target_address
        with stream.dup() as copy:
            assert copy.gettimeout() == 10
            assert copy.getpeername() == demo.target_address
            stream.sendall(b"GET /bytes/10 HTTP/1.1\r\nHost: x\r\n\r\n")
            assert copy.recv(8) == b"HTTP/1.1"


async def fetch(tunnel: aio.Tunnel, address: tuple[str, int], path: str) -> bytes:
    reader, writer = await tunnel.open_connection(*address)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: target\r\nConnection: close\r\n\r\n".encode())
    received = await reader.read()
    writer.close()
    await writer.wait_closed()
    return received.partition(b"\r\n\r\n")[2]


def test_asyncio(demo: Demo, options: dict[str, Any]) -> None:
    async def use() -> None:
        async with aio.Tunnel(**options) as tunnel:
            assert tunnel.status().phase == "up"
            assert tunnel.status_addresses == ()
            bodies = await asyncio.gather(
                *(fetch(tunnel, demo.target_address, f"/bytes/{10000 + number}") for number in range(100))
            )
            assert bodies == [sample(10000 + number) for number in range(100)]
            host, port = await tunnel.listen("127.0.0.1")
            reader, writer = await asyncio.open_connection(host, port)
            writer.write(f"GET {demo.target_url}bytes/10 HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            assert (await reader.read()).endswith(sample(10))
            writer.close()
            await writer.wait_closed()

    asyncio.run(use())


def test_asyncio_failures_are_the_same(options: dict[str, Any]) -> None:
    async def use() -> None:
        with pytest.raises(TokenError):
            async with aio.Tunnel(**{**options, "token": "wrong"}):
                pass
        async with aio.Tunnel(**options) as tunnel:
            with pytest.raises(TargetError):
                await tunnel.open_connection("two words", 80)
        with pytest.raises(EngineClosed):
            await tunnel.open_connection("a.test", 80)

    asyncio.run(use())


def test_a_task_cancelled_while_opening_leaves_no_socket_behind(options: dict[str, Any]) -> None:
    async def use() -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            # A server that takes the connection and says nothing: no session can be had.
            port = silent.getsockname()[1]
            tunnel = aio.Tunnel(
                f"hidden.test:{port}/ws", token="x", ech=False, server_ip="127.0.0.1", cache_dir="", open_timeout=60
            )
            await tunnel.start()
            opening = asyncio.create_task(tunnel.open_connection("a.test", 80))
            await asyncio.sleep(0.2)
            opening.cancel()
            with pytest.raises(asyncio.CancelledError):
                await opening
            await asyncio.wait_for(tunnel.close(), 10)

    asyncio.run(use())


def test_waiting_ends_when_the_tunnel_is_closed(options: dict[str, Any]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        tunnel = Tunnel(f"hidden.test:{port}/ws", token="x", ech=False, server_ip="127.0.0.1", cache_dir="")
        tunnel.start()
        threading.Timer(0.2, tunnel.close).start()
        with pytest.raises(TunnelError):
            tunnel.wait_ready(30)
        tunnel.close()
