"""Plain HTTP requests to the proxy: each reaches its own target alone, and the program's connection ends with the answer."""

import contextlib
import http.client
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.sync.server import ServerConnection, serve
from websockets.uri import parse_uri

from harness.answering import Answering
from harness.authority import Authority
from harness.curl import curl
from harness.ports import unused_port
from harness.processes import Processes
from harness.socks import until_end
from harness.tunnel import ProxyProgram, Site
from harness.waiting import wait_until

MODES = {"yamux": "--yamux", "simple": "--no-yamux"}
COOKIE = b"Cookie: for-the-other-host\r\n"
REFUSAL = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: keep-alive\r\n\r\n"


@pytest.fixture(scope="module", params=MODES)
def proxy(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, authority: Authority
) -> Iterator[ProxyProgram]:
    processes = Processes()
    site = Site.make(tmp_path_factory.mktemp("site"), processes, authority)
    yield site.proxy(site.server().port, MODES[request.param])
    processes.stop()
    site.resolver.stop()


@dataclass
class Program:
    """A local program with one connection to the proxy."""

    connection: socket.socket

    def send(self, line: str, port: int, *fields: bytes, content: bytes = b"") -> None:
        method, path = line.split(" ")
        head = f"{method} http://127.0.0.1:{port}{path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n".encode()
        self.connection.sendall(head + b"".join(fields) + b"\r\n" + content)

    def until_end(self) -> bytes:
        return until_end(self.connection)


@pytest.fixture
def program(proxy: ProxyProgram) -> Iterator[Program]:
    with socket.create_connection(proxy.address, timeout=20) as connection:
        yield Program(connection)


UPGRADE = (b"Connection: Upgrade\r\n", b"Upgrade: websocket\r\n")


@pytest.mark.parametrize("behind", [True, False])
def test_refused_upgrade_does_not_show_the_next_request_to_the_first_host(program: Program, behind: bool) -> None:
    with Answering(lambda head: REFUSAL) as first, Answering() as second:
        program.send("GET /chat", first.port, *UPGRADE)
        if behind:
            program.send("GET /secret", second.port, COOKIE)
        answer = program.until_end()
        if not behind:
            with contextlib.suppress(OSError):
                program.send("GET /secret", second.port, COOKIE)
        assert answer == b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        program.connection.close()
        assert b"secret" not in first.bytes
        assert first.bytes.count(b"\r\n\r\n") == 1


def test_pool_of_connections_survives_a_refused_upgrade(proxy: ProxyProgram) -> None:
    """http.client keeps its connection unless it is told that it ends."""
    with Answering(lambda head: REFUSAL) as first, Answering() as second:
        pool = http.client.HTTPConnection(*proxy.address, timeout=20)
        pool.request(
            "GET", f"http://127.0.0.1:{first.port}/", headers={"Connection": "Upgrade", "Upgrade": "websocket"}
        )
        answer = pool.getresponse()
        assert (answer.status, answer.read(), answer.will_close) == (404, b"", True)
        pool.request("GET", f"http://127.0.0.1:{second.port}/secret", headers={"Cookie": "for-the-other-host"})
        assert pool.getresponse().read() == b"ok"
        pool.close()
        assert b"secret" in second.bytes
        assert b"secret" not in first.bytes


def test_two_hosts_over_one_connection_of_curl(proxy: ProxyProgram) -> None:
    with Answering() as first, Answering() as second:
        urls = [f"http://127.0.0.1:{port}/" for port in (first.port, second.port, first.port)]
        done = curl(proxy, "http", "--fail", *urls, timeout=10)
        assert (done.returncode, done.stdout) == (0, "ok" * 3), done.stderr


@pytest.mark.parametrize(
    ("answer", "content"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", b"ok"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", b"2\r\nok\r\n0\r\n\r\n"),
        (b"HTTP/1.1 204 No Content\r\nKeep-Alive: timeout=60\r\n\r\n", b""),
    ],
)
def test_target_that_ignores_connection_close_is_left(program: Program, answer: bytes, content: bytes) -> None:
    with Answering(lambda head: answer) as target:
        program.send("GET /", target.port)
        head, _, rest = program.until_end().partition(b"\r\n\r\n")
        assert head.endswith(b"\r\nConnection: close")
        assert b"Keep-Alive" not in head
        assert rest == content
        # The program leaves, and so does the connection to the target.
        program.connection.close()
        wait_until(lambda: target.connections[0].fileno() < 0, "the end of the target's connection")


def test_pipelined_requests_end_with_the_first_answer(program: Program) -> None:
    """Nothing is lost without a word: the end of the connection tells the program to ask again (RFC 9112 section 9.3.2)."""
    content = b"x" * 3_000_000
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(content) + content
    with Answering(lambda head: answer) as first, Answering() as second:
        program.send("GET /1", first.port)
        program.send("GET /2", second.port, COOKIE)
        program.send("GET /3", first.port)
        assert program.until_end().endswith(b"\r\n\r\n" + content)
        assert first.bytes.count(b"\r\n\r\n") == 1
        assert second.bytes == b""


def test_early_answer_to_an_upload_arrives(program: Program) -> None:
    with Answering(lambda head: b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 0\r\n\r\n") as target:
        program.send("POST /", target.port, b"Content-Length: 3000000\r\n", content=b"x" * 1000)
        head = b""
        while b"\r\n\r\n" not in head:
            head += program.connection.recv(1000)
        assert head.startswith(b"HTTP/1.1 413 ")
        program.connection.sendall(b"x" * 2_999_000)
        assert program.until_end() == b""


@pytest.mark.parametrize("answer", [None, b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n"])
def test_answer_that_is_none_is_a_502(program: Program, answer: bytes | None) -> None:
    with Answering(lambda head: answer) as target:
        program.send("GET /", target.port)
        told = program.until_end()
        assert told.startswith(b"HTTP/1.1 502 Bad Gateway\r\n"), told
        assert b"the target's answer cannot be used" in told


def test_target_that_refuses_is_a_502(program: Program) -> None:
    port = unused_port()
    program.send("GET /", port)
    assert program.until_end().startswith(b"HTTP/1.1 502 Bad Gateway\r\n")


@pytest.mark.parametrize("scheme", ["http", "ws"])
def test_websocket_in_clear_goes_through(proxy: ProxyProgram, scheme: str) -> None:
    def echo(websocket: ServerConnection) -> None:
        for message in websocket:
            websocket.send(message)

    with serve(echo, "127.0.0.1", 0, compression=None) as server, contextlib.ExitStack() as stack:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        stack.callback(thread.join, 10)
        stack.callback(server.shutdown)
        port = server.socket.getsockname()[1]
        protocol = ClientProtocol(parse_uri(f"ws://127.0.0.1:{port}/chat"))
        request = protocol.connect()
        head = request.serialize().replace(b"GET /chat ", f"GET {scheme}://127.0.0.1:{port}/chat ".encode())
        connection = stack.enter_context(socket.create_connection(proxy.address, timeout=20))
        # A frame right behind the request is held back until the target has switched.
        first = Frame(Opcode.TEXT, b"early").serialize(mask=True)
        connection.sendall(head + first)
        messages: list[bytes] = []
        while messages != [b"early", b"late" * 10_000]:
            piece = connection.recv(1 << 16)
            assert piece
            protocol.receive_data(piece)
            for event in protocol.events_received():
                if isinstance(event, Frame) and event.opcode is Opcode.TEXT:
                    messages.append(bytes(event.data))
                    if len(messages) == 1:
                        connection.sendall(Frame(Opcode.TEXT, b"late" * 10_000).serialize(mask=True))


def test_request_target_passes_as_it_is(program: Program) -> None:
    with Answering() as target:
        head = b"GET http://user:pass@127.0.0.1:%d/\xc4\xe3\xba\xc3?caf\xe9 HTTP/1.1\r\n\r\n" % target.port
        program.connection.sendall(head)
        assert program.until_end().endswith(b"\r\n\r\nok")
        assert target.bytes.startswith(b"GET /\xc4\xe3\xba\xc3?caf\xe9 HTTP/1.1\r\n")
        assert b"\r\nAuthorization: Basic dXNlcjpwYXNz\r\n" in target.bytes


def test_long_request_head_arrives(program: Program) -> None:
    with Answering() as target:
        program.send("GET /", target.port, b"Cookie: " + b"c" * 30_000 + b"\r\n")
        assert program.until_end().endswith(b"\r\n\r\nok")
        assert len(target.bytes) > 30_000
