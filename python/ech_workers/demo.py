"""The whole tunnel on loopback: a private authority, a DoH resolver, a server with ECH keys, a target, and the client.

Everything is the real thing on free ports; only the names end in ``.test`` (RFC 6761) and the certificates come from an
authority that lives as long as the demonstration.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.client
import logging
import secrets
import socket
import ssl
import struct
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import parse_qs, urlsplit

import dns.exception
import dns.flags
import dns.message
import dns.rcode
import dns.rrset

from ech_workers import _native, check
from ech_workers.certificates import CertificatePair
from ech_workers.config import ClientConfig, ListenAddress, ServerConfig
from ech_workers.errors import ConfigError, TunnelError
from ech_workers.finding import Row
from ech_workers.server import TunnelServer
from ech_workers.tunnel import Tunnel

if TYPE_CHECKING:
    from ech_workers.config import Mode

__all__ = ["Check", "Demo"]

log = logging.getLogger("ech_workers.demo")

HIDDEN_NAME = "hidden.test"
PUBLIC_NAME = "public.test"
RESOLVER_NAME = "resolver.test"
PATH = "/ws"

# Seconds from now that the certificates are valid: longer than a demonstration, and than the server warns of.
LIFETIME = 30 * 86400

# Big enough to need many frames and a window update each way, small enough to take no time.
SAMPLE = 1 << 20

# How long one step of the check may take before it counts as failed, seconds.
STEP_TIMEOUT = 15.0


class Demo:
    """Everything but the client, running while entered."""

    def __init__(self) -> None:
        self._exit = contextlib.ExitStack()

    def __enter__(self) -> Demo:
        with contextlib.ExitStack() as stack:
            try:
                self.folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ech-workers-demo-")))
            except OSError as error:
                raise ConfigError(
                    f"no folder for temporary files can be written: {error.strerror}",
                    option="TMPDIR",
                    advice="set it to one that can",
                ) from None
            authority = _native.CertificateAuthority()
            self.ca_file = self.folder / "ca.pem"
            self.ca_file.write_bytes(authority.pem)
            self.token = secrets.token_urlsafe(12)

            pem, self.ech_configs = _native.generate_ech_key(secrets.randbelow(256), PUBLIC_NAME)
            self.keys = self.folder / "ech-keys"
            self.keys.mkdir(mode=0o700)
            (self.keys / "demo.pem").write_bytes(pem)

            self.target = stack.enter_context(_serving(_Server(("127.0.0.1", 0), _TargetPages)))
            self.server = TunnelServer(
                ServerConfig(
                    listen=ListenAddress("127.0.0.1", 0),
                    # One for each name: what the network sees is proved by one certificate, what it hides by the other. A
                    # scanner that asks for neither gets the first.
                    certificates=(
                        CertificatePair(*authority.issue([PUBLIC_NAME], not_after=LIFETIME)),
                        CertificatePair(*authority.issue([HIDDEN_NAME], not_after=LIFETIME)),
                    ),
                    tokens=(self.token,),
                    ech_keys=self.keys,
                    path=PATH,
                    allow_private_targets=True,
                )
            )
            stack.callback(self.server.close)
            self.resolver = stack.enter_context(_serving(self._make_resolver(authority)))
            self._exit = stack.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._exit.close()

    @property
    def target_address(self) -> tuple[str, int]:
        return "127.0.0.1", self.target.server_port

    @property
    def target_url(self) -> str:
        return f"http://127.0.0.1:{self.target.server_port}/"

    @property
    def resolver_url(self) -> str:
        return f"https://{RESOLVER_NAME}:{self.resolver.server_port}/dns-query"

    def client(self, *, mode: Mode, listen: str, status_listen: Sequence[str] = ()) -> ClientConfig:
        """What a user would give to ``ech-workers proxy`` to reach this server."""
        return ClientConfig.build(
            server=f"{HIDDEN_NAME}:{self.server.address[1]}{PATH}",
            token=self.token,
            yamux=mode == "yamux",
            doh_server=self.resolver_url,
            doh_ip="127.0.0.1",
            ca_file=self.ca_file,
            listen=listen,
            status_listen=status_listen,
            cache_dir="",
        )

    def _make_resolver(self, authority: _native.CertificateAuthority) -> _Server:
        chain, key = authority.issue([RESOLVER_NAME])
        file = self.folder / "resolver.pem"
        file.touch(mode=0o600)
        file.write_bytes(chain + key)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(file)
        context.set_alpn_protocols(["http/1.1"])
        _, port = self.server.address
        ech = base64.b64encode(self.ech_configs).decode()
        # RFC 9460 section 9.1: the record of another port than 443.
        records = {
            (f"_{port}._https.{HIDDEN_NAME}.", "HTTPS"): f'1 {HIDDEN_NAME}. port={port} alpn=http/1.1 ech="{ech}"',
            (f"{HIDDEN_NAME}.", "A"): "127.0.0.1",
        }
        rrsets = [dns.rrset.from_text(name, 60, "IN", kind, text) for (name, kind), text in records.items()]
        handler = type("_Resolver", (_ResolverPages,), {"records": rrsets})
        server = _Server(("127.0.0.1", 0), handler)
        # The handshake is left to the connection's own thread.
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        return server


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 1024  # five, the default, makes the kernel drop connections of a busy demonstration

    def handle_error(self, request: Any, client_address: Any) -> None:
        log.debug("a connection ended: %s", sys.exception())


class _Pages(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "ech-workers-demo"
    sys_version = ""
    timeout = 60.0
    # Head and body are two writes; together with a delayed ACK, Nagle would add 40 ms.
    disable_nagle_algorithm = True

    def answer(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def body(self) -> bytes:
        length = self.headers.get("Content-Length", "")
        return self.rfile.read(min(int(length), 64 << 20)) if length.isdecimal() else b""

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (the base class's name)
        log.debug("%s: " + format, type(self).__name__.strip("_"), *args)


class _TargetPages(_Pages):
    """``/``: a page for people. ``/bytes/N``: N bytes. ``POST /digest``: the SHA-256 of what came."""

    def do_GET(self) -> None:
        if self.path.startswith("/bytes/") and self.path[7:].isdecimal():
            self.answer(200, "application/octet-stream", sample(min(int(self.path[7:]), 64 << 20)))
        elif self.path == "/":
            self.answer(
                200,
                "text/plain; charset=utf-8",
                b"You came through the tunnel: SOCKS5 or HTTP in, TLS 1.3 with Encrypted Client Hello, WebSocket, out here.\n",
            )
        else:
            self.answer(404, "text/plain; charset=utf-8", b"There is nothing here; try /\n")

    def do_POST(self) -> None:
        self.answer(200, "text/plain", hashlib.sha256(self.body()).hexdigest().encode())


class _ResolverPages(_Pages):
    """DNS over HTTPS (RFC 8484) for a handful of records."""

    records: ClassVar[list[dns.rrset.RRset]] = []

    def do_GET(self) -> None:
        encoded = parse_qs(urlsplit(self.path).query).get("dns", [""])[0]
        try:
            message = base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4))
        except ValueError:
            message = b""
        self._resolve(message)

    def do_POST(self) -> None:
        self._resolve(self.body())

    def _resolve(self, message: bytes) -> None:
        try:
            query = dns.message.from_wire(message)
            question = query.question[0]
        except (dns.exception.DNSException, IndexError):
            self.answer(400, "text/plain", b"that is no DNS query\n")
            return
        response = dns.message.make_response(query)
        response.flags |= dns.flags.AA
        named = [rrset for rrset in self.records if rrset.name == question.name]
        response.answer = [rrset for rrset in named if rrset.rdtype == question.rdtype]
        if not named:
            response.set_rcode(dns.rcode.NXDOMAIN)
        self.answer(200, "application/dns-message", response.to_wire())


@contextlib.contextmanager
def _serving(server: _Server) -> Iterator[_Server]:
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), name="ech-workers-demo", daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def sample(length: int) -> bytes:
    """The same bytes for the same length, without a pattern that could hide a mix-up."""
    return hashlib.shake_256(b"ech-workers").digest(length)


Request = Callable[[tuple[str, int], tuple[str, int], str, str, bytes | None], bytes]
"""Proxy, target, method, path, body; returns what the target answered."""


class Check:
    """``check`` applied to the demonstration, then real requests through each of the local protocols.

    ``report`` is called with each finding.
    """

    def __init__(self, demo: Demo, report: Callable[[Row], object]) -> None:
        self.demo = demo
        self._report = report

    def run(self, mode: Mode) -> str | None:
        """All of one mode; returns the layer that failed, or None."""
        config = self.demo.client(mode=mode, listen="127.0.0.1:0")
        layers = check.Check(config, target=f"{self.demo.target_url}bytes/{SAMPLE}")
        last = None
        for row in layers.rows():
            self._report(row)
            last = row.layer
        if layers.error is not None:
            return last
        tunnel = Tunnel.from_config(config)
        try:
            tunnel.start()
            tunnel.wait_ready(STEP_TIMEOUT)
            if not self.demo.server.snapshot().ech_accepted:
                raise _StepError("the server has seen no connection with ECH")
            for name, request in (
                ("SOCKS5", _by_socks5),
                ("HTTP CONNECT", _by_connect),
                ("plain HTTP", _by_plain_http),
            ):
                self._exchange(name, request, tunnel.addresses[0])
        except (TunnelError, _StepError) as error:
            self._report(Row(layer="target", subject="proxy", ok=False, what=str(error)))
            return "target"
        finally:
            tunnel.close()
        return None

    def _exchange(self, name: str, request: Request, proxy: tuple[str, int]) -> None:
        start = time.perf_counter()
        target = self.demo.target_address
        up = sample(SAMPLE)
        digest = hashlib.sha256(up).hexdigest()
        try:
            down = request(proxy, target, "GET", f"/bytes/{SAMPLE}", None)
            if down != up:
                raise _StepError(f"{name}: {len(down)} bytes came down, not the {SAMPLE} that were sent")
            told = request(proxy, target, "POST", "/digest", up).decode("ascii", errors="replace")
            if told != digest:
                raise _StepError(f"{name}: the target received other bytes than were sent up")
        except (OSError, http.client.HTTPException) as error:
            raise _StepError(f"{name}: {error or type(error).__name__}") from error
        ms = (time.perf_counter() - start) * 1000
        what = f"{SAMPLE:,} bytes down and {SAMPLE:,} up, SHA-256 equal"
        self._report(Row(layer="target", subject=name, ok=True, what=what, ms=ms))


class _StepError(Exception):
    """Why a request through the tunnel was not answered as it should be."""


def _by_socks5(proxy: tuple[str, int], target: tuple[str, int], method: str, path: str, body: bytes | None) -> bytes:
    with socket.create_connection(proxy, STEP_TIMEOUT) as connection:
        connection.sendall(b"\x05\x01\x00")  # RFC 1928 section 3: version 5, one method, no authentication
        _expect(connection, b"\x05\x00", "the SOCKS5 greeting")
        host = target[0].encode()
        connection.sendall(b"\x05\x01\x00\x03" + bytes((len(host),)) + host + struct.pack("!H", target[1]))
        _expect(connection, b"\x05\x00\x00\x01", "the SOCKS5 request")
        _receive(connection, 6)  # the bound address, which means nothing here
        return _http(connection, target, method, path, body)


def _by_connect(proxy: tuple[str, int], target: tuple[str, int], method: str, path: str, body: bytes | None) -> bytes:
    with socket.create_connection(proxy, STEP_TIMEOUT) as connection:
        authority = f"{target[0]}:{target[1]}"
        connection.sendall(f"CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n".encode())
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += _receive(connection, 1)
        if head.split(b" ", 2)[1:2] != [b"200"]:
            status_line = head.partition(b"\r\n")[0].decode("ascii", errors="replace")
            raise OSError(f"CONNECT was answered {status_line}")
        return _http(connection, target, method, path, body)


def _by_plain_http(
    proxy: tuple[str, int], target: tuple[str, int], method: str, path: str, body: bytes | None
) -> bytes:
    with socket.create_connection(proxy, STEP_TIMEOUT) as connection:
        return _http(connection, target, method, f"http://{target[0]}:{target[1]}{path}", body)


def _http(connection: socket.socket, target: tuple[str, int], method: str, url: str, body: bytes | None) -> bytes:
    client = http.client.HTTPConnection(*target, timeout=STEP_TIMEOUT)
    client.sock = connection
    client.request(method, url, body)
    with client.getresponse() as response:
        content = response.read()
        if response.status != 200:
            raise OSError(
                f"the answer was {response.status} {response.reason}: {content[:200].decode(errors='replace')}"
            )
        return content


def _expect(connection: socket.socket, expected: bytes, what: str) -> None:
    answer = _receive(connection, len(expected))
    if answer != expected:
        raise OSError(f"{what} was answered {answer.hex(' ')}")


def _receive(connection: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = connection.recv(count - len(data))
        if not more:
            raise OSError("the proxy closed the connection")
        data += more
    return data
