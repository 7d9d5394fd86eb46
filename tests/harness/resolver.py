"""A DNS over HTTPS server (RFC 8484, HTTP/1.1) with one zone in memory, and the ways in which resolvers fail."""

import base64
import http.server
import ssl
import threading
from types import TracebackType
from typing import Literal, Self, TypeAlias
from urllib.parse import parse_qs, urlsplit

import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.rrset

from .authority import Certificate

Behaviour: TypeAlias = Literal["answer", "servfail", "http-500", "garbage", "silent"]


class Resolver:
    """Serves `records` on a free loopback port, unless an address is given. `behaviour` may be changed while it runs."""

    def __init__(self, certificate: Certificate, name: str, address: tuple[str, int] = ("127.0.0.1", 0)) -> None:
        self.name = name
        self.behaviour: Behaviour = "answer"
        self.questions: list[tuple[str, str]] = []
        self.replacements: list[tuple[bytes, bytes]] = []
        """Made in the bytes of each answer, for what no library would write."""
        self._zone: dict[tuple[dns.name.Name, dns.rdatatype.RdataType], dns.rrset.RRset] = {}
        self._stopping = threading.Event()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate.chain, certificate.key)
        context.set_alpn_protocols(["http/1.1"])
        self._server = _Server(self, context, address)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        return self._server.server_address[1]

    @property
    def url(self) -> str:
        return f"https://{self.name}:{self.port}/dns-query"

    def add(self, owner: str, kind: str, *values: str, ttl: int = 300) -> None:
        """Records in zone file form: add("a.test", "A", "127.0.0.1")."""
        rrset = dns.rrset.from_text_list(f"{owner}.", ttl, "IN", kind, list(values))
        self._zone[rrset.name, rrset.rdtype] = rrset

    def add_https(self, server: str, port: int, ech: str | None, ttl: int = 300) -> None:
        """The HTTPS record of a server on this port (RFC 9460 section 9.1), with its addresses."""
        owner, target = (server, ".") if port == 443 else (f"_{port}._https.{server}", f"{server}.")
        self.add(owner, "HTTPS", f'1 {target} alpn="h2,http/1.1"' + (f" ech={ech}" if ech else ""), ttl=ttl)

    def remove(self, owner: str, kind: str) -> None:
        self._zone.pop((dns.name.from_text(owner), dns.rdatatype.from_text(kind)), None)

    def answer(self, wire: bytes) -> bytes:
        query = dns.message.from_wire(wire)
        response = dns.message.make_response(query)
        response.flags |= dns.flags.RA
        question = query.question[0]
        self.questions.append((question.name.to_text(omit_final_dot=True), dns.rdatatype.to_text(question.rdtype)))
        if self.behaviour == "servfail":
            response.set_rcode(dns.rcode.SERVFAIL)
        elif (rrset := self._zone.get((question.name, question.rdtype))) is not None:
            response.answer.append(rrset)
        elif not any(name == question.name for name, _ in self._zone):
            response.set_rcode(dns.rcode.NXDOMAIN)
        answer = response.to_wire()
        for before, after in self.replacements:
            answer = answer.replace(before, after)
        return answer

    def stop(self) -> None:
        """From now on connections are refused."""
        self._stopping.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)

    def sleep(self, seconds: float) -> None:
        self._stopping.wait(seconds)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, resolver: Resolver, context: ssl.SSLContext, address: tuple[str, int]) -> None:
        super().__init__(address, _Handler)
        self.resolver = resolver
        self.context = context

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that go away, or do not trust the certificate, are part of the tests."""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def setup(self) -> None:
        # The handshake belongs to the connection's own thread.
        self.request.settimeout(10)
        self.request = self.server.context.wrap_socket(self.request, server_side=True)
        super().setup()

    def finish(self) -> None:
        super().finish()
        self.request.close()  # the server closes the plain socket, which wrapping has emptied

    def do_GET(self) -> None:
        encoded = parse_qs(urlsplit(self.path).query)["dns"][0]
        self._serve(base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4)))

    def do_POST(self) -> None:
        self._serve(self.rfile.read(int(self.headers["Content-Length"])))

    def _serve(self, query: bytes) -> None:
        resolver = self.server.resolver
        answer = resolver.answer(query)
        if resolver.behaviour == "silent":
            resolver.sleep(30)
            return
        if resolver.behaviour == "garbage":
            answer = b"\0not a DNS message"
        self.send_response(500 if resolver.behaviour == "http-500" else 200)
        self.send_header("Content-Type", "application/dns-message")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *arguments: object) -> None:
        """Nothing: `questions` has what tests ask about."""
