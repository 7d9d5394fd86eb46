"""Other libraries through the tunnel, with the real libraries and a real server; each connection goes through the tunnel."""

import asyncio
import ssl
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import aiohttp
import anyio
import asyncssh
import httpx
import pytest
import requests
import urllib3

from ech_workers import TunnelError
from ech_workers.demo import sample
from harness.authority import Authority
from harness.processes import Processes, run
from harness.silent import Silent
from harness.tunnel import PATH, SERVER_NAME, TOKEN, Site


class Pages(BaseHTTPRequestHandler):
    """/bytes/N; /close/N, after which the connection is closed; /to?URL, a redirect; POST / answers with what came."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        kind, _, size = path.lstrip("/").partition("/")
        if kind == "to":
            self.answer(302, b"", location=query)
        else:
            self.answer(200, sample(int(size or "10")), close=kind == "close")

    def do_POST(self) -> None:
        self.answer(200, self.rfile.read(int(self.headers["Content-Length"])))

    def answer(self, status: int, body: bytes, *, location: str = "", close: bool = False) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        if location:
            self.send_header("Location", location)
        if close:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass


class Web:
    """The same pages by http and by https."""

    def __init__(self, authority: Authority) -> None:
        self.context = ssl.create_default_context(cafile=authority.path)
        certificate = authority.issue("localhost")
        serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        serving.load_cert_chain(certificate.chain, certificate.key)
        self._servers = [self._server(None), self._server(serving)]
        self.http, self.https = (
            f"{scheme}://localhost:{server.server_port}"
            for scheme, server in zip(("http", "https"), self._servers, strict=True)
        )

    def _server(self, context: ssl.SSLContext | None) -> ThreadingHTTPServer:
        server = _Server(("127.0.0.1", 0), Pages)
        if context is not None:
            server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        return server

    def close(self) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 1024

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # a client that went away


@pytest.fixture(scope="module")
def web(authority: Authority) -> Iterator[Web]:
    made = Web(authority)
    yield made
    made.close()


@pytest.fixture(scope="module")
def module_site(tmp_path_factory: pytest.TempPathFactory, authority: Authority) -> Iterator[Site]:
    processes = Processes()
    made = Site.make(tmp_path_factory.mktemp("site"), processes, authority)
    yield made
    processes.stop()
    made.resolver.stop()


@pytest.fixture(scope="module")
def options(module_site: Site) -> dict[str, Any]:
    server = module_site.server()
    return {
        "server": f"{SERVER_NAME}:{server.port}{PATH}",
        "token": TOKEN,
        "doh_server": module_site.resolver.url,
        "doh_ip": "127.0.0.1",
        "ca_file": module_site.authority.path,
        "cache_dir": "",
    }


@pytest.fixture(scope="module")
def tunnel(options: dict[str, Any]) -> Iterator[Any]:
    from ech_workers import Tunnel

    with Tunnel(**options) as running:
        yield running


@pytest.fixture(scope="module")
def silent() -> Iterator[Silent]:
    with Silent() as target:
        yield target


class Watch:
    """Every connect and every look-up of a name that Python makes in this process, by its audit events."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, Any]] = []
        self.watching = False
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.watching and event in (
            "socket.connect",
            "socket.getaddrinfo",
            "socket.gethostbyname",
            "socket.bind",
        ):
            self.seen.append((event, arguments[-1] if event == "socket.connect" else arguments[0]))


watch = Watch()


def established() -> set[tuple[str, str]]:
    """The TCP connections of this process, from the system: local and remote address."""
    own = set()
    for link in Path("/proc/self/fd").iterdir():
        try:
            own.add(str(link.readlink()))
        except OSError:
            continue
    found = set()
    for line in Path("/proc/self/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if f"socket:[{fields[9]}]" in own:
            found.add((fields[1], fields[2]))
    return found


@contextmanager
def only_the_tunnel(tunnel: Any) -> Iterator[None]:
    """Nothing in here connects, or looks up a name, but by the tunnel, whose streams are counted."""
    streams = sum(session.streams_total for session in tunnel.snapshot().sessions)
    before = established()
    watch.seen.clear()
    watch.watching = True
    more: list[Any] = []
    try:
        with _sampling(more, before):
            yield
    finally:
        watch.watching = False
    assert watch.seen == []
    assert more == []
    assert sum(session.streams_total for session in tunnel.snapshot().sessions) > streams


@contextmanager
def _sampling(more: list[Any], before: set[tuple[str, str]]) -> Iterator[None]:
    """Looks at the process's connections the whole time. The web server of the test is in this process too: what it has
    accepted is its own."""
    stop = threading.Event()
    ports = {local.rpartition(":")[2] for local, remote in before if remote == "00000000:0000"}

    def look() -> None:
        while not stop.wait(0.002):
            more.extend(pair for pair in established() - before if pair[0].rpartition(":")[2] not in ports)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@pytest.mark.parametrize("secure", [False, True])
def test_http_client(web: Web, tunnel: Any, secure: bool) -> None:
    from ech_workers.integrations.http_client import HTTPConnection, HTTPSConnection

    host, port = "localhost", int((web.https if secure else web.http).rpartition(":")[2])
    connection = (
        HTTPSConnection(tunnel, host, port, timeout=20, context=web.context)
        if secure
        else HTTPConnection(tunnel, host, port, timeout=20)
    )
    with only_the_tunnel(tunnel):
        # The second is on a connection of its own: the first one is closed by the server.
        for path, size in (("/close/1000", 1000), ("/bytes/2000", 2000), ("/bytes/3000", 3000)):
            connection.request("GET", path)
            assert connection.getresponse().read() == sample(size)
        connection.close()
    with pytest.raises(NotImplementedError):
        connection.set_tunnel("a.test")


def test_urllib_request(web: Web, tunnel: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from ech_workers.integrations.urllib_request import build_opener

    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    opener = build_opener(tunnel, context=web.context)
    with only_the_tunnel(tunnel):
        for base, other in ((web.http, web.https), (web.https, web.http)):
            with opener.open(f"{base}/to?{other}/bytes/500", timeout=20) as response:
                assert response.read() == sample(500)
            with opener.open(f"{base}/", data=b"x" * 1000, timeout=20) as response:
                assert response.read() == b"x" * 1000
    for url in ("ftp://localhost/x", "file:///etc/hostname", f"{web.http}/to?ftp://localhost/x"):
        with pytest.raises(urllib.error.URLError):
            opener.open(url, timeout=20)
    with pytest.raises(urllib.error.URLError) as caught:
        opener.open("http://localhost:1/", timeout=20)
    assert isinstance(caught.value.reason, TunnelError)


def test_requests(web: Web, tunnel: Any, monkeypatch: pytest.MonkeyPatch, authority: Authority) -> None:
    from ech_workers.integrations.requests import session

    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with session(tunnel) as client, only_the_tunnel(tunnel):
        client.verify = str(authority.path)
        for base, other in ((web.http, web.https), (web.https, web.http)):
            assert client.get(f"{base}/to?{other}/close/500", timeout=20).content == sample(500)
            assert client.get(f"{base}/bytes/600", timeout=20).content == sample(600)
            assert client.post(base, data=b"y" * 100, timeout=20).content == b"y" * 100
        with pytest.raises(requests.exceptions.ConnectionError):
            client.get("http://localhost:1/", timeout=20)
        many: list[bytes] = []
        threads = [
            threading.Thread(target=lambda: many.append(client.get(f"{web.https}/bytes/700", timeout=20).content))
            for _ in range(20)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert many == [sample(700)] * 20


def test_requests_deadline(tunnel: Any, silent: Silent) -> None:
    from ech_workers.integrations.requests import session

    with session(tunnel) as client, pytest.raises(requests.exceptions.ConnectTimeout):
        client.get(f"http://127.0.0.1:{silent.address[1]}/", timeout=0.3)


def test_urllib3(web: Web, tunnel: Any, authority: Authority) -> None:
    from ech_workers.integrations.urllib3 import TunnelPoolManager

    with TunnelPoolManager(tunnel, ca_certs=str(authority.path), timeout=20) as manager, only_the_tunnel(tunnel):
        for base, other in ((web.http, web.https), (web.https, web.http)):
            assert manager.request("GET", f"{base}/to?{other}/bytes/500").data == sample(500)
            assert manager.request("GET", f"{base}/close/500").data == sample(500)
            assert manager.request("GET", f"{base}/bytes/500").data == sample(500)
        with pytest.raises(urllib3.exceptions.MaxRetryError) as caught:
            manager.request("GET", "http://localhost:1/", retries=urllib3.Retry(2, backoff_factor=0))
        assert isinstance(caught.value.reason, urllib3.exceptions.NewConnectionError)


def test_httpx(web: Web, tunnel: Any, silent: Silent, monkeypatch: pytest.MonkeyPatch) -> None:
    from ech_workers.integrations.httpx import TunnelTransport

    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    with (
        httpx.Client(
            transport=TunnelTransport(tunnel, verify=web.context), timeout=20, follow_redirects=True
        ) as client,
        only_the_tunnel(tunnel),
    ):
        for base, other in ((web.http, web.https), (web.https, web.http)):
            assert client.get(f"{base}/to?{other}/close/500").content == sample(500)
            assert client.get(f"{base}/bytes/500").content == sample(500)
            assert client.post(base, content=b"z" * 100).content == b"z" * 100
        with client.stream("GET", f"{web.https}/bytes/100000") as response:
            assert b"".join(response.iter_bytes()) == sample(100000)
        with pytest.raises(httpx.ConnectError, match="refused"):
            client.get("http://localhost:1/")
        with pytest.raises(httpx.ConnectTimeout):
            client.get(f"http://127.0.0.1:{silent.address[1]}/", timeout=0.3)


def test_httpx_async(web: Web, silent: Silent, options: dict[str, Any]) -> None:
    from ech_workers import aio
    from ech_workers.integrations.httpx import AsyncTunnelTransport

    async def use() -> None:
        async with aio.Tunnel(**options) as tunnel:
            transport = AsyncTunnelTransport(tunnel, verify=web.context)
            async with httpx.AsyncClient(transport=transport, timeout=20, follow_redirects=True) as client:
                with only_the_tunnel(tunnel):
                    for base, other in ((web.http, web.https), (web.https, web.http)):
                        assert (await client.get(f"{base}/to?{other}/close/500")).content == sample(500)
                        assert (await client.get(f"{base}/bytes/500")).content == sample(500)
                    answers = await asyncio.gather(*(client.get(f"{web.https}/bytes/800") for _ in range(100)))
                    assert [answer.content for answer in answers] == [sample(800)] * 100
                    with pytest.raises(httpx.ConnectError):
                        await client.get("http://localhost:1/")
                    url = f"http://127.0.0.1:{silent.address[1]}/"
                    with pytest.raises(httpx.ConnectTimeout):
                        await client.get(url, timeout=0.3)
                    task = asyncio.create_task(client.get(url, timeout=30))
                    await asyncio.sleep(0.1)
                    task.cancel()
                    with pytest.raises(asyncio.CancelledError):
                        await task
                while tunnel.snapshot().connections > 25:
                    await asyncio.sleep(0.01)
            while tunnel.snapshot().connections:
                await asyncio.sleep(0.01)

    asyncio.run(asyncio.wait_for(use(), 60))


HTTP2 = """
import json, sys, ssl, h2.connection, h2.config, h2.events, socket, threading
chain, key = sys.argv[1:3]
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(chain, key)
context.set_alpn_protocols(["h2"])
listener = socket.create_server(("127.0.0.1", 0), backlog=64)
print(json.dumps({"event": "listening", "port": listener.getsockname()[1]}), flush=True)

def serve(raw):
    with context.wrap_socket(raw, server_side=True) as connection:
        state = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
        state.initiate_connection()
        connection.sendall(state.data_to_send())
        while data := connection.recv(65536):
            for event in state.receive_data(data):
                if isinstance(event, h2.events.RequestReceived):
                    state.send_headers(event.stream_id, [(":status", "200"), ("content-length", "5")])
                    state.send_data(event.stream_id, b"hello", end_stream=True)
            connection.sendall(state.data_to_send())

while True:
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
"""


def test_http2_inside_of_the_tunnel(
    tunnel: Any, options: dict[str, Any], authority: Authority, processes: Processes, tmp_path: Path
) -> None:
    from ech_workers import aio
    from ech_workers.integrations.httpx import AsyncTunnelTransport, TunnelTransport

    certificate = authority.issue("localhost")
    (tmp_path / "server.py").write_text(HTTP2)
    server = processes.start(sys.executable, tmp_path / "server.py", certificate.chain, certificate.key)
    url = f"https://localhost:{server.wait_event('listening')['port']}/"
    context = ssl.create_default_context(cafile=authority.path)
    context.set_alpn_protocols(["h2", "http/1.1"])
    with httpx.Client(transport=TunnelTransport(tunnel, verify=context, http2=True), timeout=20) as client:
        for _ in range(3):
            response = client.get(url)
            assert (response.http_version, response.text) == ("HTTP/2", "hello")

    async def use() -> None:
        async with aio.Tunnel(**options) as own:
            transport = AsyncTunnelTransport(own, verify=context, http2=True)
            async with httpx.AsyncClient(transport=transport, timeout=20) as client:
                for response in await asyncio.gather(*(client.get(url) for _ in range(50))):
                    assert (response.http_version, response.text) == ("HTTP/2", "hello")

    asyncio.run(use())


def test_aiohttp(web: Web, silent: Silent, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from ech_workers import aio
    from ech_workers.integrations.aiohttp import TunnelConnector

    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")

    async def use() -> None:
        async with aio.Tunnel(**options) as tunnel:
            connector = TunnelConnector(tunnel, ssl=web.context)
            limit = aiohttp.ClientTimeout(total=30)
            async with aiohttp.ClientSession(connector=connector, timeout=limit) as client:

                async def get(url: str) -> bytes:
                    async with client.get(url) as response:
                        return await response.read()

                with only_the_tunnel(tunnel):
                    for base, other in ((web.http, web.https), (web.https, web.http)):
                        assert await get(f"{base}/to?{other}/close/500") == sample(500)
                        assert await get(f"{base}/bytes/500") == sample(500)
                    answers = await asyncio.gather(*(get(f"{web.https}/bytes/800") for _ in range(100)))
                    assert answers == [sample(800)] * 100
                    with pytest.raises(aiohttp.ClientConnectorError):
                        await get("http://localhost:1/")
                    url = f"http://127.0.0.1:{silent.address[1]}/"
                    with pytest.raises(TimeoutError):
                        await client.get(url, timeout=aiohttp.ClientTimeout(sock_connect=0.3))
                    task = asyncio.create_task(get(url))
                    await asyncio.sleep(0.1)
                    task.cancel()
                    with pytest.raises(asyncio.CancelledError):
                        await task
            while tunnel.snapshot().connections:
                await asyncio.sleep(0.01)

    asyncio.run(asyncio.wait_for(use(), 60))


def test_aiohttp_never_connects_around_the_tunnel(
    web: Web, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Should aiohttp make its connections in another way one day, they fail."""
    from ech_workers import aio
    from ech_workers.integrations.aiohttp import TunnelConnector

    monkeypatch.delattr(TunnelConnector, "_wrap_create_connection")

    async def use() -> None:
        async with (
            aio.Tunnel(**options, connect="lazy") as tunnel,
            aiohttp.ClientSession(connector=TunnelConnector(tunnel)) as client,
        ):
            for host in ("localhost", "127.0.0.1"):
                with pytest.raises(aiohttp.ClientConnectorError, match="around the tunnel"):
                    await client.get(web.http.replace("localhost", host))

    asyncio.run(use())


def test_anyio(web: Web, options: dict[str, Any]) -> None:
    from ech_workers import aio

    async def use() -> None:
        async with aio.Tunnel(**options) as tunnel:
            with only_the_tunnel(tunnel):
                stream = await tunnel.create_connection(("localhost", int(web.http.rpartition(":")[2])), timeout=20)
                async with await anyio.abc.SocketStream.from_socket(stream) as connection:
                    await connection.send(b"GET /close/500 HTTP/1.1\r\nHost: x\r\n\r\n")
                    received = b""
                    with pytest.raises(anyio.EndOfStream):
                        while True:
                            received += await connection.receive()
            assert received.endswith(sample(500))

    asyncio.run(use())


class _Ssh(asyncssh.SSHServer):
    def begin_auth(self, username: str) -> bool:
        return False


def test_asyncssh(options: dict[str, Any]) -> None:
    from ech_workers import aio

    async def use() -> None:
        key = asyncssh.generate_private_key("ssh-ed25519")

        async def handle(process: Any) -> None:
            process.stdout.write("you said " + process.command)
            process.exit(0)

        server = await asyncssh.create_server(_Ssh, "127.0.0.1", 0, server_host_keys=[key], process_factory=handle)
        port = server.sockets[0].getsockname()[1]
        async with aio.Tunnel(**options) as tunnel:
            stream = await tunnel.create_connection(("localhost", port), timeout=20)
            async with asyncssh.connect(sock=stream, known_hosts=None, username="x", config=None) as ssh:
                assert (await ssh.run("hello")).stdout == "you said hello"
        server.close()
        await server.wait_closed()

    asyncio.run(asyncio.wait_for(use(), 60))


def test_an_integration_whose_library_is_missing_names_the_extra(tmp_path: Path) -> None:
    done = run(
        sys.executable,
        "-c",
        "import sys; sys.modules['httpx'] = None; import ech_workers.integrations.httpx",
    )
    assert "ech-workers[httpx]" in done.stderr
