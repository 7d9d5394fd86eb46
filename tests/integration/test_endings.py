"""How a stream ended is told: half of the data is never taken for all of it."""

import asyncio
import http.client
import os
import select
import socket
import ssl
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import uvloop

from ech_workers import ConnectError, SessionError, StreamReset, StreamSocket, Tunnel, aio
from harness.authority import Authority, Certificate
from harness.tunnel import PATH, SERVER_NAME, TOKEN, ServerProgram, Site

HALF = 100_000


class Target:
    """Sends half of what it promised, waits to be told how to go on, and does that."""

    def __init__(self, certificate: Certificate | None = None, greeting: bytes = b"") -> None:
        self.go_on = threading.Event()
        self.reset = False
        self._greeting = greeting
        self._context: ssl.SSLContext | None = None
        if certificate is not None:
            self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._context.load_cert_chain(certificate.chain, certificate.key)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address: tuple[str, int] = ("localhost", self._listener.getsockname()[1])
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        try:
            if self._context is not None:
                connection = self._context.wrap_socket(connection, server_side=True)
            with connection:
                connection.recv(65536)
                connection.sendall(self._greeting + bytes(HALF))
                self.go_on.wait(30)
                if self.reset:
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        except OSError:
            pass

    def close(self) -> None:
        self.go_on.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


def options(site: Site, server: ServerProgram) -> dict[str, Any]:
    return {
        "server": f"{SERVER_NAME}:{server.port}{PATH}",
        "token": TOKEN,
        "doh_server": site.resolver.url,
        "doh_ip": "127.0.0.1",
        "ca_file": site.authority.path,
        "cache_dir": "",
    }


Cut = Callable[[ServerProgram, Target], None]


def lose_the_session(server: ServerProgram, target: Target) -> None:
    server.process.kill()


def reset_the_target(server: ServerProgram, target: Target) -> None:
    target.reset = True
    target.go_on.set()


def end_in_order(server: ServerProgram, target: Target) -> None:
    target.go_on.set()


CUTS = pytest.mark.parametrize("cut", [lose_the_session, reset_the_target])
MODES = pytest.mark.parametrize("yamux", [True, False])


@pytest.fixture
def target() -> Iterator[Target]:
    made = Target()
    yield made
    made.close()


def begin(tunnel: Tunnel, target: Target) -> StreamSocket:
    stream = tunnel.create_connection(target.address, timeout=20)
    stream.sendall(b"go")
    return stream


def by_recv(stream: StreamSocket, cut: Callable[[], None], size: int) -> int:
    received = 0
    while received < HALF:
        received += len(stream.recv(size))
    cut()
    while data := stream.recv(size):
        received += len(data)
    return received


def by_recv_into(stream: StreamSocket, cut: Callable[[], None], size: int) -> int:
    received, space = 0, bytearray(size)
    while received < HALF:
        received += stream.recv_into(space)
    cut()
    while count := stream.recv_into(space):
        received += count
    return received


def by_file(stream: StreamSocket, cut: Callable[[], None], size: int) -> int:
    with stream.makefile("rb", size) as file:
        received = len(file.read(HALF))
        cut()
        return received + len(file.read())


def by_select(stream: StreamSocket, cut: Callable[[], None], size: int) -> int:
    stream.setblocking(False)
    received = 0
    while True:
        select.select([stream], [], [], 20)
        data = stream.recv(size)
        if not data:
            return received
        received += len(data)
        if received == HALF:
            cut()


def by_dup(stream: StreamSocket, cut: Callable[[], None], size: int) -> int:
    with stream.dup() as copy:
        stream.close()
        return by_recv(copy, cut, size)


READERS = pytest.mark.parametrize("read", [by_recv, by_recv_into, by_file, by_select, by_dup])
Reader = Callable[[StreamSocket, Callable[[], None], int], int]


@CUTS
@MODES
@READERS
def test_half_of_the_data_is_an_error(site: Site, target: Target, cut: Cut, yamux: bool, read: Reader) -> None:
    server = site.server()
    with Tunnel(**options(site, server), yamux=yamux) as tunnel, begin(tunnel, target) as stream:
        with pytest.raises(ConnectionResetError) as caught:
            read(stream, lambda: cut(server, target), 7919)
        assert isinstance(caught.value, StreamReset | ConnectionResetError)
        if read is not by_dup:
            # It stays so.
            with pytest.raises(ConnectionResetError):
                stream.recv(1)


@READERS
@MODES
def test_all_of_the_data_ends_in_order(site: Site, target: Target, yamux: bool, read: Reader) -> None:
    server = site.server()
    with Tunnel(**options(site, server), yamux=yamux) as tunnel, begin(tunnel, target) as stream:
        assert read(stream, lambda: end_in_order(server, target), 7919) == HALF


def test_the_end_of_the_tunnel_is_not_the_end_of_the_data(site: Site, target: Target) -> None:
    server = site.server()
    with Tunnel(**options(site, server)) as tunnel:
        stream = begin(tunnel, target)
        with pytest.raises(StreamReset) as caught:
            by_recv(stream, tunnel.close, 65536)
        assert caught.value.code == "session-lost"
        assert isinstance(caught.value, SessionError)
        stream.close()


def test_http_without_a_length_does_not_take_half_for_all(site: Site) -> None:
    target = Target(greeting=b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
    server = site.server()
    with Tunnel(**options(site, server)) as tunnel:
        from ech_workers.integrations.http_client import HTTPConnection

        connection = HTTPConnection(tunnel, *target.address, timeout=20)
        connection.request("GET", "/")
        response = connection.getresponse()
        assert len(response.read(HALF)) == HALF
        lose_the_session(server, target)
        with pytest.raises((ConnectionResetError, http.client.IncompleteRead)):
            response.read()
        response.close()
        connection.close()
    target.close()


@pytest.fixture
def secure_target(authority: Authority) -> Iterator[Target]:
    made = Target(authority.issue("localhost"))
    yield made
    made.close()


def by_start_tls(stream: StreamSocket, context: ssl.SSLContext) -> ssl.SSLSocket:
    return stream.start_tls(context)


def by_wrap_socket(stream: StreamSocket, context: ssl.SSLContext) -> ssl.SSLSocket:
    return context.wrap_socket(stream, server_hostname="localhost")


@CUTS
@MODES
@pytest.mark.parametrize(
    "wrap",
    [
        by_start_tls,
        pytest.param(
            by_wrap_socket,
            marks=pytest.mark.skipif(
                sys.version_info < (3, 11, 9), reason="CPython gh-115627: ssl takes a reset, of TCP too, for an end"
            ),
        ),
    ],
)
def test_tls_on_top_does_not_take_half_for_all(
    site: Site,
    secure_target: Target,
    authority: Authority,
    cut: Cut,
    yamux: bool,
    wrap: Callable[[StreamSocket, ssl.SSLContext], ssl.SSLSocket],
) -> None:
    server = site.server()
    context = ssl.create_default_context(cafile=authority.path)
    with (
        Tunnel(**options(site, server), yamux=yamux) as tunnel,
        tunnel.create_connection(secure_target.address, timeout=20) as stream,
        wrap(stream, context) as secure,
    ):
        secure.sendall(b"go")
        received = 0
        while received < HALF:
            received += len(secure.recv(65536))
        cut(server, secure_target)
        with pytest.raises(OSError, match=r"reset|lost"):
            while secure.recv(65536):
                pass
    assert context.sslsocket_class is ssl.SSLSocket


@CUTS
@MODES
def test_a_program_that_reads_the_descriptor_does_not_take_half_for_all(
    site: Site, target: Target, cut: Cut, yamux: bool
) -> None:
    server = site.server()
    with Tunnel(**options(site, server), yamux=yamux) as tunnel:
        stream = begin(tunnel, target)
        stream.settimeout(None)
        descriptor = stream.detach()
        try:
            received = 0
            while received < HALF:
                received += len(os.read(descriptor, 7919))
            cut(server, target)
            with pytest.raises(ConnectionResetError):
                os.read(descriptor, 1)
        finally:
            os.close(descriptor)


LOOPS = pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])


@LOOPS
@MODES
@pytest.mark.parametrize("secure", [False, True])
@pytest.mark.parametrize("size", [1000, 65536, -1])
def test_a_reader_gets_the_exception(
    site: Site, authority: Authority, loop: Any, yamux: bool, secure: bool, size: int
) -> None:
    server = site.server()
    target = Target(authority.issue("localhost") if secure else None)

    async def use() -> None:
        async with aio.Tunnel(**options(site, server), yamux=yamux) as tunnel:
            context = ssl.create_default_context(cafile=authority.path) if secure else None
            reader, writer = await tunnel.open_connection(*target.address, timeout=20, ssl=context)
            assert writer.get_extra_info("peername") == target.address
            writer.write(b"go")
            received = len(await reader.readexactly(HALF if size < 0 else HALF - size))
            lose_the_session(server, target)
            with pytest.raises(ConnectionError):
                while data := await reader.read(size):
                    received += len(data)
            with pytest.raises(ConnectionError):
                await reader.read(1)
            writer.close()

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(use())
    target.close()


@LOOPS
@MODES
@pytest.mark.parametrize("secure", [False, True])
def test_a_reader_reads_to_the_end(site: Site, authority: Authority, loop: Any, yamux: bool, secure: bool) -> None:
    server = site.server()
    target = Target(authority.issue("localhost") if secure else None)

    async def use() -> None:
        async with aio.Tunnel(**options(site, server), yamux=yamux) as tunnel:
            context = ssl.create_default_context(cafile=authority.path) if secure else None
            reader, writer = await tunnel.open_connection(*target.address, timeout=20, ssl=context)
            writer.write(b"go")
            target.go_on.set()
            assert len(await reader.read()) == HALF
            writer.close()
            await writer.wait_closed()

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(use())
    target.close()


def test_a_server_that_cannot_be_reached_is_a_connection_error(site: Site) -> None:
    server = site.server()
    server.process.kill()
    with pytest.raises(ConnectionError) as caught, Tunnel(**options(site, server)):
        pass
    assert isinstance(caught.value, ConnectError)
